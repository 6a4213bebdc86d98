#include "bpe.h"

#include <algorithm>
#include <functional>

#include "failure.h"
#include "../src/utf8.h"

namespace shiftadd::text {

namespace {

constexpr uint32_t kEnd = 0xFFFFFFFF;

bool flag(json::Value model, std::string_view name) {
  const json::Value value = model.find(name);
  return !value.missing_or_null() && value.boolean();
}

void refuse_unless_empty(json::Value model, std::string_view name) {
  const json::Value value = model.find(name);
  if (value.missing_or_null() || value.string().empty()) return;
  unsupported("a BPE with " + std::string(name) + " " + quoted(value.string()));
}

std::string_view only_letter_or_empty(std::string_view token, char32_t* letter) {
  if (token.empty()) return {};
  const utf8::Decoded decoded = utf8::decode(token, 0);
  *letter = decoded.code;
  return decoded.size == token.size() ? token : std::string_view();
}

}  // namespace

Bpe::Bpe(json::Value model) {
  const json::Value type = model.find("type");  // old files have none, and are BPE if they have merges
  if (type ? type.string() != "BPE" : !model.find("merges")) {
    unsupported("a model of type " + (type ? quoted(type.string()) : std::string("null")) +
                "; only BPE is read here");
  }
  const json::Value dropout = model.find("dropout");
  if (!dropout.missing_or_null() && dropout.number() != 0) unsupported("a BPE with dropout");
  refuse_unless_empty(model, "continuing_subword_prefix");
  refuse_unless_empty(model, "end_of_word_suffix");
  fuse_unknown_ = flag(model, "fuse_unk");
  byte_fallback_ = flag(model, "byte_fallback");
  ignore_merges_ = flag(model, "ignore_merges");
  read_vocabulary(model.at("vocab"));
  read_merges(model.at("merges"));
  read_bytes();
  const json::Value unknown = model.find("unk_token");
  if (unknown.missing_or_null()) return;
  unknown_ = vocabulary_.find(unknown.string());
  if (!unknown_) bad_file("unk_token " + quoted(unknown.string()) + " is not in the vocabulary");
}

void Bpe::read_vocabulary(json::Value vocab) {
  if (!vocab.is(json::Kind::kObject)) bad_file("vocab: expected an object");
  vocabulary_.reserve(vocab.size());
  for (const json::Value token : vocab) {
    const int64_t id = token.integer();
    const std::string_view text = token.key();
    vocabulary_.add(text, id);
    char32_t letter = 0;
    if (!only_letter_or_empty(text, &letter).empty()) codes_.set(letter, static_cast<uint64_t>(id));
  }
}

void Bpe::read_bytes() {
  static constexpr char kHex[] = "0123456789ABCDEF";
  for (size_t byte = 0; byte < 256; ++byte) {
    const char name[] = {'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>', '\0'};
    bytes_[byte] = vocabulary_.find(name).value_or(-1);
  }
}

void Bpe::read_merges(json::Value merges) {
  if (!merges.is(json::Kind::kArray)) bad_file("merges: expected an array");
  merges_.reserve(merges.size());
  Reading reading;
  for (const json::Value merge : merges) {
    if (merge.is(json::Kind::kString)) {
      const std::string_view line = merge.string();
      if (line.substr(0, 8) == "#version") continue;  // the first line of a merges.txt
      const size_t space = line.find(' ');
      if (space == line.npos || line.find(' ', space + 1) != line.npos) {
        bad_file("the merge " + quoted(line) + " is not two tokens");
      }
      add_merge(line.substr(0, space), line.substr(space + 1), &reading);
    } else {
      if (merge.size() != 2) bad_file("merge " + std::to_string(reading.rank) + " is not two tokens");
      const json::Value left = *merge.begin();
      const json::Value right = *++merge.begin();
      add_merge(left.string(), right.string(), &reading);
    }
  }
}

void Bpe::add_merge(std::string_view left, std::string_view right, Reading* reading) {
  reading->both.assign(left).append(right);
  const auto found = [&](std::string_view token, std::optional<Id> id) {
    if (!id) {
      bad_file("merge " + std::to_string(reading->rank) + " needs the token " + quoted(token) +
               ", which is not in the vocabulary");
    }
    return *id;
  };
  const Id first = found(left, vocabulary_.find(left)), second = found(right, vocabulary_.find(right));
  reading->made = found(reading->both, vocabulary_.find(reading->both, reading->made + 1));
  merges_.set(pair_key(static_cast<uint32_t>(first), static_cast<uint32_t>(second)),
              pair_key(reading->rank++, static_cast<uint32_t>(reading->made)));
}

void Bpe::encode(std::u32string_view word, Scratch* scratch, std::vector<Id>* ids) const {
  if (word.empty()) return;
  if (word.size() >= kEnd / 8) usage("A word of " + std::to_string(word.size()) + " letters is too long");
  if (ignore_merges_) {
    scratch->word.clear();
    for (const char32_t code : word) utf8::append(&scratch->word, code);
    if (const std::optional<Id> id = vocabulary_.find(scratch->word)) {
      ids->push_back(*id);
      return;
    }
  }
  split(word, scratch);
  if (scratch->symbols.empty()) return;
  merge(scratch);
  for (uint32_t at = 0; at != kEnd; at = scratch->symbols[at].next) {
    ids->push_back(scratch->symbols[at].id);
  }
}

void Bpe::push(Id id, Scratch* scratch) const {
  auto& symbols = scratch->symbols;
  const uint32_t place = static_cast<uint32_t>(symbols.size());
  if (place) symbols.back().next = place;
  symbols.push_back({id, place ? place - 1 : kEnd, kEnd, false});
}

// The tokens of one letter each; an unknown letter is its bytes, or the unknown token, or nothing.
void Bpe::split(std::u32string_view word, Scratch* scratch) const {
  scratch->symbols.clear();
  bool pending = false;  // an unknown token, not yet pushed
  for (const char32_t code : word) {
    const uint64_t id = codes_.find(code);
    if (id != FlatMap::kMissing) {
      if (pending) push(*unknown_, scratch);
      pending = false;
      push(static_cast<Id>(id), scratch);
    } else if (!(byte_fallback_ && push_bytes(code, scratch)) && unknown_) {
      // bytes in between do not end a run of unknown letters
      if (pending && !fuse_unknown_) push(*unknown_, scratch);
      pending = true;
    }
  }
  if (pending) push(*unknown_, scratch);
}

bool Bpe::push_bytes(char32_t code, Scratch* scratch) const {
  std::string bytes;
  utf8::append(&bytes, code);
  for (const char byte : bytes) {
    if (bytes_[static_cast<uint8_t>(byte)] < 0) return false;
  }
  for (const char byte : bytes) push(bytes_[static_cast<uint8_t>(byte)], scratch);
  return true;
}

void Bpe::enqueue(uint32_t symbol, Scratch* scratch) const {
  const auto& symbols = scratch->symbols;
  const uint32_t next = symbols[symbol].next;
  if (next == kEnd) return;
  const uint64_t found = merges_.find(pair_key(static_cast<uint32_t>(symbols[symbol].id),
                                               static_cast<uint32_t>(symbols[next].id)));
  if (found == FlatMap::kMissing) return;
  scratch->queue.push_back((found >> 32 << 32) | symbol);
}

// Merge the pair of the lowest rank, the leftmost of several, until there is none.
void Bpe::merge(Scratch* scratch) const {
  auto& symbols = scratch->symbols;
  auto& queue = scratch->queue;
  const std::greater<uint64_t> least_first;
  queue.clear();
  for (uint32_t i = 0; i + 1 < symbols.size(); ++i) enqueue(i, scratch);
  std::make_heap(queue.begin(), queue.end(), least_first);
  const auto add = [&](uint32_t symbol) {
    const size_t before = queue.size();
    enqueue(symbol, scratch);
    if (queue.size() != before) std::push_heap(queue.begin(), queue.end(), least_first);
  };
  while (!queue.empty()) {
    const uint32_t left = static_cast<uint32_t>(queue.front());
    const uint64_t rank = queue.front() >> 32;
    std::pop_heap(queue.begin(), queue.end(), least_first);
    queue.pop_back();
    const uint32_t right = symbols[left].next;
    if (symbols[left].gone || right == kEnd) continue;
    const uint64_t found = merges_.find(pair_key(static_cast<uint32_t>(symbols[left].id),
                                                 static_cast<uint32_t>(symbols[right].id)));
    if (found == FlatMap::kMissing || found >> 32 != rank) continue;  // one of the two has grown since
    symbols[left].id = static_cast<Id>(static_cast<uint32_t>(found));
    symbols[left].next = symbols[right].next;
    symbols[right].gone = true;
    if (symbols[left].next != kEnd) symbols[symbols[left].next].previous = left;
    if (symbols[left].previous != kEnd) add(symbols[left].previous);
    add(left);
  }
}

}  // namespace shiftadd::text
