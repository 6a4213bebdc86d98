// normalizer.h: what a tokenizer does to a text before it splits it.
#ifndef SHIFTADD_TEXT_NORMALIZER_H_
#define SHIFTADD_TEXT_NORMALIZER_H_

#include <string>
#include <variant>
#include <vector>

#include "../src/json.h"
#include "pattern.h"
#include "unicode.h"

namespace shiftadd::text {

// The pattern of a "Replace" or "Split": {"String": ...} or {"Regex": ...}.
Pattern read_pattern(json::Value value);

class Normalizer {
 public:
  // Of "normalizer" of a tokenizer.json, which may be null: NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip
  // and Sequences of them. A Failure for any other.
  explicit Normalizer(json::Value value) { read(value); }

  std::u32string run(std::u32string text) const;

 private:
  struct Prepend {
    std::u32string text;
  };
  struct Replace {
    Pattern pattern;
    std::u32string content;
  };
  struct Strip {
    bool left, right;
  };
  using Step = std::variant<Form, Prepend, Replace, Strip>;

  void read(json::Value value);
  static void apply(const Step& step, std::u32string* text);

  std::vector<Step> steps_;
};

// `text` with each match of `pattern` replaced by `content`.
std::u32string replaced(std::u32string_view text, const Pattern& pattern, std::u32string_view content);

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_NORMALIZER_H_
