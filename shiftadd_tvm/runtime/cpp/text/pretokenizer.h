// pretokenizer.h: how a tokenizer splits a text into words, each of which is encoded on its own.
#ifndef SHIFTADD_TEXT_PRETOKENIZER_H_
#define SHIFTADD_TEXT_PRETOKENIZER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "../src/json.h"
#include "pattern.h"

namespace shiftadd::text {

// A text and the ranges of its words; none is empty.
struct Words {
  struct Range {
    size_t begin, end;
  };

  std::u32string text;
  std::vector<Range> ranges;
  bool at_start = false;  // whether the first word begins where the whole input begins

  std::u32string_view word(const Range& range) const {
    return std::u32string_view(text).substr(range.begin, range.end - range.begin);
  }
};

class PreTokenizer {
 public:
  // Of "pre_tokenizer" of a tokenizer.json, which may be null: ByteLevel, Digits, Metaspace, Split and
  // Sequences of them. A Failure for any other.
  explicit PreTokenizer(json::Value value) { read(value); }

  void run(Words* words) const;

 private:
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prefix { kAlways, kFirst, kNever };
  struct Split {
    Pattern pattern;
    Behavior behavior;
    bool invert;
  };
  struct ByteLevel {
    bool add_prefix_space, use_regex;
  };
  struct Digits {
    bool individual;
  };
  struct Metaspace {
    char32_t replacement;
    Prefix prefix;
    bool split;
  };
  using Step = std::variant<Split, ByteLevel, Digits, Metaspace>;
  using Finder = std::function<std::vector<Pattern::Match>(std::u32string_view)>;
  struct Piece {
    size_t begin, end;
    bool match;
  };

  void read(json::Value value);
  static Behavior read_behavior(json::Value value);
  static Metaspace read_metaspace(json::Value value);
  static void split(const Finder& find, Behavior behavior, bool invert, Words* words);
  static void join(const std::vector<Piece>& pieces, Behavior behavior, size_t offset,
                   std::vector<Words::Range>* ranges);
  static void run_bytes(const ByteLevel& step, Words* words);
  static void run_metaspace(const Metaspace& step, Words* words);

  std::vector<Step> steps_;
};

// The letter that stands for a byte in byte-level tokens, and back (-1: the letter stands for none).
char32_t byte_letter(uint8_t byte);
int letter_byte(char32_t letter);

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_PRETOKENIZER_H_
