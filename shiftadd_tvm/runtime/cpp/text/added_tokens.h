// added_tokens.h: tokens that are found in a text before anything splits it, such as <|im_end|>.
#ifndef SHIFTADD_TEXT_ADDED_TOKENS_H_
#define SHIFTADD_TEXT_ADDED_TOKENS_H_

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "flat_map.h"
#include "../src/json.h"
#include "normalizer.h"
#include "vocabulary.h"

namespace shiftadd::text {

struct AddedToken {
  std::string content;
  std::string written;  // what decoding makes of it: the content, normalized where the token is
  Id id = 0;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

class AddedTokens {
 public:
  // Of "added_tokens" of a tokenizer.json. A Failure where their ids are not those that `tokenizers` would
  // give them: a token of the vocabulary keeps its id, the others follow behind.
  AddedTokens(json::Value list, const Vocabulary& vocabulary, const Normalizer& normalizer);

  // A part of a text: an added token, or what lies between them (no token).
  struct Segment {
    size_t begin, end;
    const AddedToken* token;
  };
  // The segments of `text` by the tokens that are looked for before (false) or after normalization (true).
  std::vector<Segment> find(std::u32string_view text, bool normalized) const;

  const AddedToken* by_id(Id id) const;
  std::optional<Id> id(std::string_view content) const;
  bool is_special(std::string_view content) const;
  size_t beyond(const Vocabulary& vocabulary) const;  // tokens that the vocabulary lacks
  Id end() const { return end_; }                     // above the largest id; 0 if there is none

 private:
  // The tokens as a tree of letters.
  class Trie {
   public:
    void add(std::u32string_view text, size_t token);
    // The longest token that begins at `at`; false if none does. Counts its `steps`.
    bool longest(std::u32string_view text, size_t at, size_t* token, size_t* end, size_t* steps) const;
    bool empty() const { return tokens_.size() <= 1; }

   private:
    FlatMap children_;                     // node, letter -> node
    std::vector<size_t> tokens_ = {kNone};  // of each node
    static constexpr size_t kNone = ~size_t{0};
  };

  static AddedToken read(json::Value value);
  void add(AddedToken token, const Vocabulary& vocabulary, const Normalizer& normalizer);
  static bool stands_alone(std::u32string_view text, size_t begin, size_t end);

  std::vector<AddedToken> tokens_;
  std::unordered_map<Id, size_t> by_id_;
  std::unordered_map<std::string, Id> ids_;
  std::unordered_set<std::string> special_;
  Trie plain_, normalized_;
  Id end_ = 0;
};

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_ADDED_TOKENS_H_
