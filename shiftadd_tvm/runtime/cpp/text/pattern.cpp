// Matching of pattern.h: backtracking over the instructions, with a budget.
#include "pattern.h"

#include "failure.h"
#include "pattern_compiler.h"
#include "../src/utf8.h"

namespace shiftadd::text {

namespace {

constexpr size_t kNowhere = ~size_t{0};
constexpr size_t kMaxRetreats = size_t{1} << 22;  // places to go back to, at once

class Matcher {
 public:
  Matcher(const std::vector<CodeSet>& sets, const std::vector<Instruction>& code,
          std::u32string_view text)
      : sets_(sets), code_(code), text_(text), budget_((text.size() + 64) * kStepsPerCode) {}

  // Where the match that begins at `begin` ends; kNowhere if there is none.
  size_t match(size_t begin) { return run(0, begin); }

 private:
  // Places to go back to: instruction `pc` at any of the positions low...high, the highest first.
  struct Retreat {
    uint32_t pc;
    size_t low, high;
  };

  void spend(size_t steps) {
    if (steps > budget_) unsupported("a text that takes too many steps");
    budget_ -= steps;
  }

  // Look-ahead and atomic groups call this again: as deeply as groups lie in each other, at most 32.
  size_t run(uint32_t pc, size_t at) {
    const size_t floor = retreats_.size();
    for (;;) {
      spend(1);
      const Instruction& now = code_[pc];
      if (now.op == Op::kMatch) {
        retreats_.resize(floor);
        return at;
      }
      if (step(now, &pc, &at)) continue;
      if (retreats_.size() == floor) return kNowhere;
      Retreat& last = retreats_.back();
      pc = last.pc;
      at = last.high;
      if (last.low == last.high) retreats_.pop_back();
      else --last.high;
    }
  }

  void retreat(uint32_t pc, size_t low, size_t high) {
    if (retreats_.size() >= kMaxRetreats) unsupported("a text that takes too many steps");
    retreats_.push_back({pc, low, high});
  }

  // Do one instruction; false where it does not match.
  bool step(const Instruction& now, uint32_t* pc, size_t* at) {
    switch (now.op) {
      case Op::kSet:
        if (*at == text_.size() || !sets_[now.set].contains(text_[*at])) return false;
        ++*at;
        break;
      case Op::kLoop: return loop(now, pc, at);
      case Op::kSplit:
        retreat(now.b, *at, *at);
        *pc = now.a;
        return true;
      case Op::kJump: *pc = now.a; return true;
      case Op::kLook:
        if ((run(now.a, *at) != kNowhere) == now.flag) return false;
        *pc = now.b;
        return true;
      case Op::kAtomic:
        *at = run(now.a, *at);
        *pc = now.b;
        return *at != kNowhere;
      case Op::kLineBegin:
        if (*at != 0 && text_[*at - 1] != U'\n') return false;
        break;
      case Op::kLineEnd:
        if (*at != text_.size() && text_[*at] != U'\n') return false;
        break;
      case Op::kMatch: break;
    }
    ++*pc;
    return true;
  }

  bool loop(const Instruction& now, uint32_t* pc, size_t* at) {
    const CodeSet& set = sets_[now.set];
    const size_t room = text_.size() - *at;
    const size_t most = now.high < room ? now.high : room;
    size_t count = 0;
    while (count < most && set.contains(text_[*at + count])) ++count;
    spend(count);
    if (count < now.low) return false;
    ++*pc;
    if (!now.flag && count > now.low) retreat(*pc, *at + now.low, *at + count - 1);
    *at += count;
    return true;
  }

  const std::vector<CodeSet>& sets_;
  const std::vector<Instruction>& code_;
  std::u32string_view text_;
  size_t budget_;
  std::vector<Retreat> retreats_;
};

}  // namespace

Pattern::Pattern(std::u32string_view source) : name_(utf8::encode(source.substr(0, 200))) {
  try {
    CompiledPattern compiled = compile_pattern(source);
    sets_ = std::move(compiled.sets);
    code_ = std::move(compiled.code);
  } catch (const Failure& failure) {
    unsupported("the pattern '" + name_ + "' has " + failure.sentence + ", which this reader does not know");
  }
}

Pattern Pattern::literal(std::u32string_view text) {
  if (text.empty()) unsupported("an empty pattern");
  if (text.size() > 1024) unsupported("a pattern of more than 1024 letters");
  Pattern pattern;
  pattern.name_ = utf8::encode(text);
  for (const char32_t code : text) {
    Instruction instruction{Op::kSet};
    instruction.set = static_cast<uint32_t>(pattern.sets_.size());
    pattern.code_.push_back(instruction);
    pattern.sets_.emplace_back();
    pattern.sets_.back().add_range(code, code);
    pattern.sets_.back().finish();
  }
  pattern.code_.push_back({Op::kMatch});
  return pattern;
}

std::vector<Pattern::Match> Pattern::find_all(std::u32string_view text) const {
  std::vector<Match> matches;
  Matcher matcher(sets_, code_, text);
  size_t at = 0, last_end = kNowhere;
  try {
    while (at <= text.size()) {
      const size_t end = matcher.match(at);
      // an empty match right behind another one does not count
      if (end == kNowhere || (end == at && at == last_end)) {
        ++at;
        continue;
      }
      matches.push_back({at, end});
      last_end = at = end;
    }
  } catch (const Failure&) {
    usage("The text takes more than " + std::to_string(kStepsPerCode) + " steps a letter to split by '" +
          name_ + "'; give it in pieces");
  }
  return matches;
}

}  // namespace shiftadd::text
