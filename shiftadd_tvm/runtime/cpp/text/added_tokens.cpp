#include "added_tokens.h"

#include <algorithm>

#include "failure.h"
#include "unicode.h"
#include "../src/utf8.h"

namespace shiftadd::text {

namespace {

constexpr size_t kStepsPerLetter = 512;

}  // namespace

void AddedTokens::Trie::add(std::u32string_view text, size_t token) {
  uint32_t node = 0;
  for (const char32_t letter : text) {
    const uint64_t child = children_.find(pair_key(node, letter));
    if (child != FlatMap::kMissing) {
      node = static_cast<uint32_t>(child);
      continue;
    }
    children_.set(pair_key(node, letter), tokens_.size());
    node = static_cast<uint32_t>(tokens_.size());
    tokens_.push_back(kNone);
  }
  if (tokens_[node] != kNone) bad_file("two added tokens are written " + quoted(utf8::encode(text)));
  tokens_[node] = token;
}

bool AddedTokens::Trie::longest(std::u32string_view text, size_t at, size_t* token, size_t* end,
                                size_t* steps) const {
  uint32_t node = 0;
  bool found = false;
  for (size_t i = at; i < text.size(); ++i) {
    ++*steps;
    const uint64_t child = children_.find(pair_key(node, text[i]));
    if (child == FlatMap::kMissing) break;
    node = static_cast<uint32_t>(child);
    if (tokens_[node] == kNone) continue;
    *token = tokens_[node];
    *end = i + 1;
    found = true;
  }
  return found;
}

AddedTokens::AddedTokens(json::Value list, const Vocabulary& vocabulary, const Normalizer& normalizer) {
  if (list.missing_or_null()) return;
  if (!list.is(json::Kind::kArray)) bad_file("added_tokens: expected an array");
  for (const json::Value value : list) add(read(value), vocabulary, normalizer);
}

AddedToken AddedTokens::read(json::Value value) {
  const auto flag = [value](std::string_view name) { return value.at(name).boolean(); };
  AddedToken token;
  token.content = std::string(value.at("content").string());
  token.written = token.content;
  const int64_t id = value.at("id").integer();
  if (id < 0 || id >= 1 << 24) bad_file("an added token has the id " + std::to_string(id));
  token.id = static_cast<Id>(id);
  token.single_word = flag("single_word");
  token.lstrip = flag("lstrip");
  token.rstrip = flag("rstrip");
  token.normalized = flag("normalized");
  token.special = flag("special");
  return token;
}

void AddedTokens::add(AddedToken token, const Vocabulary& vocabulary, const Normalizer& normalizer) {
  if (token.content.empty()) return;
  const std::string name = quoted(token.content);
  const Id expected =
      vocabulary.find(token.content).value_or(std::max(end_, static_cast<Id>(vocabulary.count())));
  if (ids_.count(token.content) || by_id_.count(token.id)) {
    bad_file("the added token " + name + ", or its id " + std::to_string(token.id) + ", stands there twice");
  }
  if (token.id != expected) {
    bad_file("the added token " + name + " has id " + std::to_string(token.id) + ", expected " +
             std::to_string(expected));
  }
  const size_t index = tokens_.size();
  const std::u32string letters = utf8::decode_all(token.content);
  if (token.normalized) {
    const std::u32string normal = normalizer.run(letters);
    token.written = utf8::encode(normal);
    if (!normal.empty()) normalized_.add(normal, index);
  } else {
    plain_.add(letters, index);
  }
  if (token.special) special_.insert(token.content);
  ids_.emplace(token.content, token.id);
  by_id_.emplace(token.id, index);
  end_ = std::max(end_, token.id + 1);
  tokens_.push_back(std::move(token));
}

bool AddedTokens::stands_alone(std::u32string_view text, size_t begin, size_t end) {
  return (begin == 0 || !is_word(text[begin - 1])) && (end == text.size() || !is_word(text[end]));
}

std::vector<AddedTokens::Segment> AddedTokens::find(std::u32string_view text, bool normalized) const {
  const Trie& trie = normalized ? normalized_ : plain_;
  if (trie.empty()) return {{0, text.size(), nullptr}};
  std::vector<Segment> segments;
  size_t done = 0;  // what lies before belongs to a segment
  size_t steps = 0;
  for (size_t at = 0; at < text.size();) {
    size_t index = 0, end = 0;
    if (steps / kStepsPerLetter > text.size()) usage("The text takes too many steps to find added tokens in");
    if (!trie.longest(text, at, &index, &end, &steps)) {
      ++at;
      continue;
    }
    size_t begin = at;
    at = end;
    const AddedToken& token = tokens_[index];
    if (token.single_word && !stands_alone(text, begin, end)) continue;
    while (token.lstrip && begin > done && is_space(text[begin - 1])) --begin;
    while (token.rstrip && end < text.size() && is_space(text[end])) ++end;
    if (done < begin) segments.push_back({done, begin, nullptr});
    segments.push_back({begin, end, &token});
    done = end;
  }
  if (done < text.size()) segments.push_back({done, text.size(), nullptr});
  return segments;
}

const AddedToken* AddedTokens::by_id(Id id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

std::optional<Id> AddedTokens::id(std::string_view content) const {
  const auto found = ids_.find(std::string(content));
  return found == ids_.end() ? std::nullopt : std::optional<Id>(found->second);
}

bool AddedTokens::is_special(std::string_view content) const {
  return special_.count(std::string(content)) > 0;
}

size_t AddedTokens::beyond(const Vocabulary& vocabulary) const {
  return static_cast<size_t>(std::count_if(tokens_.begin(), tokens_.end(), [&](const AddedToken& token) {
    return !vocabulary.find(token.content);
  }));
}

}  // namespace shiftadd::text
