#include "pattern_compiler.h"

#include <memory>

#include "failure.h"
#include "../src/utf8.h"

namespace shiftadd::text {

namespace {

constexpr size_t kMaxInstructions = 4096;
constexpr int kMaxGroups = 32;  // one inside the other
constexpr uint32_t kMaxCount = 1000;
constexpr size_t kMaxParts = 65536;  // letters of a pattern, and parts of it, copies for counts included
constexpr int kMaxSigns = 4;         // quantifiers of one part

// A part of a pattern.
struct Node {
  enum Kind { kSet, kSequence, kChoice, kRepeat, kLook, kAtomic, kLineBegin, kLineEnd } kind;
  std::vector<Node> parts;
  uint32_t set = 0;
  uint32_t low = 0, high = 0;  // of a repeat
  bool flag = false;           // a possessive repeat, a negated look
};

class PatternParser {
 public:
  PatternParser(std::u32string_view source, std::vector<CodeSet>* sets) : source_(source), sets_(*sets) {}

  Node parse() {
    Node node = choice(0);
    if (!done()) unsupported("')' without '('");
    return node;
  }

 private:
  bool done() const { return at_ >= source_.size(); }
  char32_t peek() const { return done() ? 0 : source_[at_]; }
  bool take(char32_t code) {
    if (done() || source_[at_] != code) return false;
    ++at_;
    return true;
  }
  bool take(std::u32string_view text) {
    if (source_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }
  char32_t next() {
    if (done()) unsupported("an end where more must come");
    return source_[at_++];
  }

  Node choice(int depth) {
    if (depth > kMaxGroups) unsupported("more than 32 groups inside each other");
    Node node{Node::kChoice, {}};
    do {
      node.parts.push_back(sequence(depth));
    } while (take(U'|'));
    return node.parts.size() == 1 ? std::move(node.parts[0]) : node;
  }

  Node sequence(int depth) {
    Node node{Node::kSequence, {}};
    while (!done() && peek() != U'|' && peek() != U')') {
      Node part = atom(depth);
      for (int signs = 0; repeat(&part); ++signs) {
        if (signs == kMaxSigns) unsupported("more than 4 quantifiers in a row");
      }
      node.parts.push_back(std::move(part));
    }
    return node;
  }

  // Wrap `part` in the quantifier that follows, if one does.
  bool repeat(Node* part) {
    uint32_t low = 0, high = kNoLimit;
    if (take(U'*')) {
    } else if (take(U'+')) {
      low = 1;
    } else if (take(U'?')) {
      high = 1;
    } else if (peek() == U'{' && braces(&low, &high)) {
      if (peek() == U'?' || peek() == U'+') unsupported("a sign behind '}'");
      wrap(part, low, high, false);
      return true;
    } else {
      return false;
    }
    if (take(U'?')) unsupported("a lazy quantifier");
    wrap(part, low, high, take(U'+'));
    return true;
  }

  static void wrap(Node* part, uint32_t low, uint32_t high, bool possessive) {
    if (part->kind == Node::kLineBegin || part->kind == Node::kLineEnd || part->kind == Node::kLook) {
      unsupported("a repeated place");
    }
    Node node{Node::kRepeat, {}};
    node.parts.push_back(std::move(*part));
    node.low = low;
    node.high = high;
    node.flag = possessive;
    *part = std::move(node);
  }

  // {n}, {n,}, {,m} or {n,m}; anything else begins with a plain '{'.
  bool braces(uint32_t* low, uint32_t* high) {
    const size_t begin = at_++;
    const bool has_low = number(low);
    bool has_high = false;
    if (take(U',')) {
      *high = kNoLimit;
      has_high = number(high);
    } else {
      *high = *low;
    }
    if ((has_low || has_high) && take(U'}')) {
      if (*low > *high) unsupported("a quantifier whose least is above its most");
      return true;
    }
    at_ = begin;
    return false;
  }

  bool number(uint32_t* value) {
    const size_t begin = at_;
    uint32_t result = 0;
    while (peek() >= U'0' && peek() <= U'9') {
      result = result * 10 + static_cast<uint32_t>(next() - U'0');
      if (result > kMaxCount) unsupported("a quantifier above 1000");
    }
    if (at_ == begin) return false;
    *value = result;
    return true;
  }

  Node atom(int depth) {
    if (take(U'(')) return group(depth);
    if (take(U'[')) return set_node(bracket());
    if (take(U'^')) return {Node::kLineBegin, {}};
    if (take(U'$')) return {Node::kLineEnd, {}};
    CodeSet set;
    if (take(U'.')) {
      set.add_range(U'\n', U'\n');
      set.negate();
    } else if (take(U'\\')) {
      escape(&set);
    } else {
      if (peek() == U'*' || peek() == U'+' || peek() == U'?') unsupported("a quantifier without anything");
      const char32_t code = next();
      set.add_range(code, code);
    }
    return set_node(std::move(set));
  }

  Node set_node(CodeSet set) {
    if (ignore_case_) set.add_other_case();
    set.finish();
    Node node{Node::kSet, {}};
    node.set = static_cast<uint32_t>(sets_.size());
    sets_.push_back(std::move(set));
    return node;
  }

  Node group(int depth) {
    const bool outer = ignore_case_;
    Node node{Node::kSequence, {}};
    if (take(U"?i:")) {
      ignore_case_ = true;
    } else if (take(U"?=") || take(U"?!")) {
      node.kind = Node::kLook;
      node.flag = source_[at_ - 1] == U'!';
    } else if (take(U"?>")) {
      node.kind = Node::kAtomic;
    } else if (!take(U"?:") && peek() == U'?') {
      unsupported("the group (" + utf8::encode(source_.substr(at_, 3)));
    }
    node.parts.push_back(choice(depth + 1));
    if (!take(U')')) unsupported("'(' without ')'");
    ignore_case_ = outer;
    return node;
  }

  // What follows a backslash: a class into `set`, or one code point, which is returned too.
  char32_t escape(CodeSet* set) {
    const char32_t code = next();
    switch (code) {
      case U's': case U'S': case U'd': case U'D': case U'w': case U'W':
        set->add_class(static_cast<char>(code));
        return kNoCode;
      case U'p': case U'P':
        property(set, code == U'P');
        return kNoCode;
      default: break;
    }
    const char32_t value = literal(code);
    set->add_range(value, value);
    return value;
  }

  char32_t literal(char32_t code) {
    switch (code) {
      case U'n': return U'\n';
      case U'r': return U'\r';
      case U't': return U'\t';
      case U'f': return U'\f';
      case U'v': return U'\v';
      case U'x': return take(U'{') ? hexadecimal(8, true) : hexadecimal(2, false);
      case U'u': return hexadecimal(4, false);
      default: break;
    }
    const bool alphanumeric = (code >= U'0' && code <= U'9') || ((code | 32) >= U'a' && (code | 32) <= U'z');
    if (alphanumeric) unsupported("the escape \\" + utf8::encode(std::u32string(1, code)));
    return code;
  }

  char32_t hexadecimal(int digits, bool braced) {
    char32_t value = 0;
    for (int i = 0; i < digits && !(braced && peek() == U'}'); ++i) {
      const char32_t code = next(), folded = code | 32;
      if (code >= U'0' && code <= U'9') value = value * 16 + (code - U'0');
      else if (folded >= U'a' && folded <= U'f') value = value * 16 + (folded - U'a' + 10);
      else unsupported("a hexadecimal escape with other digits");
      if (value > 0x10FFFF) unsupported("a code point above 10FFFF");
    }
    if (braced && !take(U'}')) unsupported("\\x{ without '}'");
    return value;
  }

  void property(CodeSet* set, bool negated) {
    std::u32string name(1, next());
    if (name == U"{") {
      name.clear();
      while (peek() != U'}') name.push_back(next());
      next();
    }
    if (!name.empty() && name[0] == U'^') {
      negated = !negated;
      name.erase(0, 1);
    }
    set->add_category(utf8::encode(name), negated);
  }

  CodeSet bracket() {
    CodeSet set;
    const bool negated = take(U'^');
    bool first = true;
    while (first || peek() != U']') {
      first = false;
      if (peek() == U'[' || source_.substr(at_, 2) == U"&&") unsupported("a class inside a class");
      const char32_t code = next();
      const char32_t low = code == U'\\' ? escape(&set) : code;
      if (low == kNoCode) continue;
      char32_t high = low;
      if (peek() == U'-' && at_ + 1 < source_.size() && source_[at_ + 1] != U']') {
        ++at_;
        high = next();
        if (high == U'[') unsupported("a class inside a class");
        if (high == U'\\') high = literal(next());
        if (high < low) unsupported("a range that ends before it begins");
      }
      set.add_range(low, high);
    }
    next();
    if (negated) set.negate();
    return set;
  }

  static constexpr char32_t kNoCode = 0xFFFFFFFF;

  std::u32string_view source_;
  std::vector<CodeSet>& sets_;
  size_t at_ = 0;
  bool ignore_case_ = false;
};

class Emitter {
 public:
  explicit Emitter(std::vector<Instruction>* code) : code_(*code) {}

  void emit_all(const Node& node) {
    emit(node);
    push({Op::kMatch});
  }

 private:
  uint32_t here() const { return static_cast<uint32_t>(code_.size()); }

  uint32_t push(const Instruction& instruction) {
    if (code_.size() >= kMaxInstructions) unsupported("more than 4096 steps");
    code_.push_back(instruction);
    return here() - 1;
  }

  static Instruction on_set(Op op, uint32_t set) {
    Instruction instruction{op};
    instruction.set = set;
    return instruction;
  }

  void emit(const Node& node) {
    if (++parts_ > kMaxParts) unsupported("more than 65536 parts");
    switch (node.kind) {
      case Node::kSet: push(on_set(Op::kSet, node.set)); break;
      case Node::kSequence:
        for (const Node& part : node.parts) emit(part);
        break;
      case Node::kChoice: emit_choice(node); break;
      case Node::kRepeat: emit_repeat(node); break;
      case Node::kLook: emit_inner(Op::kLook, node.flag, node.parts[0]); break;
      case Node::kAtomic: emit_inner(Op::kAtomic, false, node.parts[0]); break;
      case Node::kLineBegin: push({Op::kLineBegin}); break;
      case Node::kLineEnd: push({Op::kLineEnd}); break;
    }
  }

  void emit_choice(const Node& node) {
    std::vector<uint32_t> jumps;
    for (size_t i = 0; i + 1 < node.parts.size(); ++i) {
      const uint32_t split = push({Op::kSplit});
      code_[split].a = here();
      emit(node.parts[i]);
      jumps.push_back(push({Op::kJump}));
      code_[split].b = here();
    }
    emit(node.parts.back());
    for (const uint32_t jump : jumps) code_[jump].a = here();
  }

  // A pattern of its own, ended by kMatch, behind an instruction that runs it.
  void emit_inner(Op op, bool flag, const Node& inner) {
    const uint32_t start = push({op, flag});
    code_[start].a = here();
    emit_all(inner);
    code_[start].b = here();
  }

  void emit_repeat(const Node& node) {
    const Node& part = node.parts[0];
    if (part.kind == Node::kSet) {
      Instruction loop = on_set(Op::kLoop, part.set);
      loop.low = node.low;
      loop.high = node.high;
      loop.flag = node.flag;
      push(loop);
    } else if (node.flag) {
      Node greedy = node;
      greedy.flag = false;
      emit_inner(Op::kAtomic, false, greedy);
    } else {
      emit_group_repeat(node, part);
    }
  }

  void emit_group_repeat(const Node& node, const Node& part) {
    for (uint32_t i = 0; i < node.low; ++i) emit(part);
    if (node.high == kNoLimit) {
      if (may_be_empty(part)) unsupported("an endless repetition of what may be empty");
      const uint32_t split = push({Op::kSplit});
      code_[split].a = here();
      emit(part);
      code_[push({Op::kJump})].a = split;
      code_[split].b = here();
      return;
    }
    std::vector<uint32_t> splits;
    for (uint32_t i = node.low; i < node.high; ++i) {
      splits.push_back(push({Op::kSplit}));
      code_[splits.back()].a = here();
      emit(part);
    }
    for (const uint32_t split : splits) code_[split].b = here();
  }

  static bool may_be_empty(const Node& node) {
    switch (node.kind) {
      case Node::kSet: return false;
      case Node::kSequence:
        for (const Node& part : node.parts) {
          if (!may_be_empty(part)) return false;
        }
        return true;
      case Node::kChoice:
        for (const Node& part : node.parts) {
          if (may_be_empty(part)) return true;
        }
        return false;
      case Node::kRepeat: return node.low == 0 || may_be_empty(node.parts[0]);
      case Node::kAtomic: return may_be_empty(node.parts[0]);
      default: return true;
    }
  }

  std::vector<Instruction>& code_;
  size_t parts_ = 0;
};

}  // namespace

CompiledPattern compile_pattern(std::u32string_view source) {
  if (source.size() > kMaxParts) unsupported("more than 65536 letters");
  CompiledPattern compiled;
  const Node node = PatternParser(source, &compiled.sets).parse();
  Emitter(&compiled.code).emit_all(node);
  return compiled;
}

}  // namespace shiftadd::text
