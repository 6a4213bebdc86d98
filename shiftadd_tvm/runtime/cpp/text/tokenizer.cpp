#include "tokenizer.h"

#include "failure.h"
#include "../src/utf8.h"

namespace shiftadd::text {

namespace {

constexpr size_t kMaxText = size_t{256} << 20;  // bytes

}  // namespace

Tokenizer::Tokenizer(const json::Document& document)
    : model_(document.root().at("model")),
      normalizer_(document.root().find("normalizer")),
      added_(document.root().find("added_tokens"), model_.vocabulary(), normalizer_),
      pretokenizer_(document.root().find("pre_tokenizer")),
      template_(document.root().find("post_processor")),
      decoder_(document.root().find("decoder")) {}

void Tokenizer::choose_bos(std::optional<bool> wanted, std::string_view name) {
  if (wanted) {
    bos_ = *wanted ? id(name) : std::nullopt;
    return;
  }
  const std::vector<Id> plain = encode("a", Around::kNothing), whole = encode("a", Around::kTemplate);
  if (!whole.empty() && (plain.empty() || plain[0] != whole[0])) bos_ = whole[0];
}

std::vector<Id> Tokenizer::encode(std::string_view text, Around around) const {
  if (text.size() > kMaxText) {
    usage("The text has " + std::to_string(text.size()) + " bytes, more than " + std::to_string(kMaxText) +
          "; give it in pieces");
  }
  const size_t bad = utf8::first_invalid(text);
  if (bad != text.size()) usage("The text is not UTF-8 at byte " + std::to_string(bad));
  std::vector<Id> ids;
  const std::u32string letters = utf8::decode_all(text);
  for (const AddedTokens::Segment& segment : added_.find(letters, false)) {
    if (segment.token) ids.push_back(segment.token->id);
    else encode_between(letters.substr(segment.begin, segment.end - segment.begin), segment.begin == 0, &ids);
  }
  if (around == Around::kTemplate) template_.run(&ids);
  if (around == Around::kBos && bos_) ids.insert(ids.begin(), *bos_);
  return ids;
}

// What lies between two added tokens of the text as it came.
void Tokenizer::encode_between(std::u32string text, bool at_start, std::vector<Id>* ids) const {
  if (text.empty()) return;
  const std::u32string normal = normalizer_.run(std::move(text));
  Bpe::Scratch scratch;
  for (const AddedTokens::Segment& segment : added_.find(normal, true)) {
    if (segment.token) {
      ids->push_back(segment.token->id);
      continue;
    }
    const size_t size = segment.end - segment.begin;
    if (size == 0) continue;
    Words words{normal.substr(segment.begin, size), {{0, size}}, at_start && segment.begin == 0};
    pretokenizer_.run(&words);
    for (const Words::Range& range : words.ranges) model_.encode(words.word(range), &scratch, ids);
  }
}

std::string Tokenizer::decode(const std::vector<Id>& ids, bool skip_special) const {
  std::vector<std::string> tokens;
  for (const Id id : ids) {
    const AddedToken* added = added_.by_id(id);
    const std::optional<std::string_view> plain = model_.vocabulary().token(id);
    if (!added && !plain) continue;
    std::string token = added ? added->written : std::string(*plain);
    if (!(skip_special && added_.is_special(token))) tokens.push_back(std::move(token));
  }
  return decoder_.run(std::move(tokens));
}

std::optional<Id> Tokenizer::id(std::string_view token) const {
  const std::optional<Id> added = added_.id(token);
  return added ? added : model_.vocabulary().find(token);
}

std::optional<std::string> Tokenizer::token(Id id) const {
  if (const AddedToken* added = added_.by_id(id)) return added->content;
  const std::optional<std::string_view> plain = model_.vocabulary().token(id);
  return plain ? std::optional<std::string>(std::string(*plain)) : std::nullopt;
}

size_t Tokenizer::count() const { return model_.vocabulary().count() + added_.beyond(model_.vocabulary()); }

}  // namespace shiftadd::text
