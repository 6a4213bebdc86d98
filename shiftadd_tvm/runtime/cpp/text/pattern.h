// pattern.h: the regular expressions that tokenizers split text with: a bounded part of Oniguruma's.
//
//     a  \n  \p{L}  \P{N}  \s \S \d \D \w \W  [^\r\n\p{L}a-z]  .  ^  $     one code point, or a place
//     (?:x)  (x)  (?i:x)  (?=x)  (?!x)  (?>x)  x|y                         groups, look-ahead, choices
//     x?  x*  x+  x{2}  x{1,3}  x{2,}  x?+  x*+  x++                       greedy and possessive
//
// Anything else (lazy quantifiers, look-behind, back references, nested classes) is refused by name.
// Matching is backtracking with a budget of steps that is proportional to the text.
#ifndef SHIFTADD_TEXT_PATTERN_H_
#define SHIFTADD_TEXT_PATTERN_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace shiftadd::text {

// A set of code points.
class CodeSet {
 public:
  void add_range(char32_t low, char32_t high);
  void add_properties(uint8_t mask, uint8_t value, bool negated);  // those with (properties & mask) == value
  void add_category(std::string_view name, bool negated);
  void add_class(char letter);  // of \s \S \d \D \w \W
  void add_other_case();
  void negate() { negated_ = !negated_; }
  void finish();  // before contains()
  bool contains(char32_t code) const;

 private:
  bool look_up(char32_t code) const;

  bool negated_ = false;
  std::array<bool, 256> by_properties_{};
  std::vector<std::pair<char32_t, char32_t>> ranges_;
  std::array<bool, 128> ascii_{};
};

// What one instruction of a compiled pattern does; `next` is the following one unless it says otherwise.
enum class Op : uint8_t {
  kSet,        // one code point of sets[set]
  kLoop,       // `low` to `high` of them; `possessive` ones are not given back
  kSplit,      // try `a`, then `b`
  kJump,       // go on at `a`
  kLook,       // the pattern at `a` must match here (must not, if `negated`); go on at `b`
  kAtomic,     // match the pattern at `a` for good; go on at `b`
  kLineBegin,  // ^
  kLineEnd,    // $
  kMatch,
};

struct Instruction {
  Op op;
  bool flag = false;  // possessive or negated
  uint32_t set = 0;
  uint32_t a = 0, b = 0;  // targets
  uint32_t low = 0, high = 0;
};

constexpr uint32_t kNoLimit = 0xFFFFFFFF;

class Pattern {
 public:
  // A Failure where `source` is not understood.
  explicit Pattern(std::u32string_view source);
  // One that finds `text` itself.
  static Pattern literal(std::u32string_view text);

  struct Match {
    size_t begin, end;
  };
  // The matches in `text`, from left to right, as Oniguruma's search would find them one after the other.
  // A Failure where that takes more than kStepsPerCode steps a code point.
  std::vector<Match> find_all(std::u32string_view text) const;

 private:
  Pattern() = default;

  std::vector<CodeSet> sets_;
  std::vector<Instruction> code_;
  std::string name_;  // for failures
};

constexpr size_t kStepsPerCode = 512;

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_PATTERN_H_
