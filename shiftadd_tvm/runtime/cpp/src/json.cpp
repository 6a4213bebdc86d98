// The reader of json.h: one pass over the bytes, nodes in depth-first order.
#include "json.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "failure.h"
#include "utf8.h"

namespace shiftadd::json {

namespace {

std::string quoted(std::string_view text) { return '"' + internal::quoted(text) + '"'; }

[[noreturn]] void fail(const std::string& what) { throw Error(what); }

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

class Parser {
 public:
  Parser(std::string_view text, size_t max_values, Document* document)
      : text_(text), max_values_(max_values), document_(*document) {}

  void run() {
    // a tokenizer has a value for 19 bytes or more, a manifest for 10
    document_.nodes_.reserve(std::min(max_values_, text_.size() / 16 + 1));
    skip_space();
    value(0, {});
    skip_space();
    if (at_ != text_.size()) wrong("nothing more");
  }

 private:
  using Node = Document::Node;
  using Piece = Document::Piece;

  [[noreturn]] void wrong(const char* expected) const {
    std::string found = "the end";
    if (at_ < text_.size()) {
      const unsigned char byte = static_cast<unsigned char>(text_[at_]);
      found = byte > 32 && byte < 127 ? quoted(text_.substr(at_, 1)) : "byte " + std::to_string(byte);
    }
    fail("it is not JSON: byte " + std::to_string(at_) + ": expected " + expected + ", found " + found);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
    }
  }

  bool take(char c) {
    if (peek() != c || at_ >= text_.size()) return false;
    ++at_;
    return true;
  }

  void value(int depth, Piece key) {
    std::vector<Node>& nodes = document_.nodes_;
    if (depth > kMaxDepth) fail("it is nested more than " + std::to_string(kMaxDepth) + " deep");
    if (nodes.size() == max_values_) fail("it has more than " + std::to_string(max_values_) + " values");
    const size_t index = nodes.size();
    nodes.emplace_back();
    nodes[index].key = key;
    const size_t begin = at_;
    switch (peek()) {
      case '{': container(index, depth, Kind::kObject, '}'); break;
      case '[': container(index, depth, Kind::kArray, ']'); break;
      case '"':
        nodes[index].kind = Kind::kString;
        nodes[index].content = string();
        break;
      case 't': word(index, "true", Kind::kTrue); break;
      case 'f': word(index, "false", Kind::kFalse); break;
      case 'n': word(index, "null", Kind::kNull); break;
      default: number(index);
    }
    Node& node = nodes[index];
    node.next = static_cast<uint32_t>(nodes.size());
    node.source = static_cast<uint32_t>(begin);
    node.source_size = static_cast<uint32_t>(at_ - begin);
  }

  void container(size_t index, int depth, Kind kind, char close) {
    ++at_;
    uint32_t count = 0;
    skip_space();
    if (!take(close)) {
      do {
        skip_space();
        Piece key;
        if (kind == Kind::kObject) {
          if (peek() != '"') wrong("a string");
          key = string();
          skip_space();
          if (!take(':')) wrong("':'");
          skip_space();
        }
        value(depth + 1, key);
        ++count;
        skip_space();
      } while (take(','));
      if (!take(close)) wrong(close == '}' ? "',' or '}'" : "',' or ']'");
    }
    document_.nodes_[index].kind = kind;
    document_.nodes_[index].content.size = count;
  }

  // Pass the characters up to a quote or an escape.
  void plain() {
    while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
           static_cast<unsigned char>(text_[at_]) >= 0x20) {
      ++at_;
    }
    if (at_ == text_.size() || static_cast<unsigned char>(text_[at_]) < 0x20) wrong("'\"'");
  }

  Piece string() {
    std::string& strings = document_.strings_;
    size_t begin = ++at_;
    plain();
    if (text_[at_] == '"') {
      const size_t size = at_++ - begin;
      return {static_cast<uint32_t>(begin), static_cast<uint32_t>(size)};
    }
    const size_t first = strings.size();
    for (;; plain()) {
      strings.append(text_, begin, at_ - begin);
      if (text_[at_++] == '"') break;
      escape(&strings);
      begin = at_;
    }
    const uint32_t size = static_cast<uint32_t>(strings.size() - first);
    return {static_cast<uint32_t>(first), size | Piece::kUnescaped};
  }

  void escape(std::string* strings) {
    const char c = peek();
    static constexpr char kFrom[] = "\"\\/bfnrt";
    static constexpr char kTo[] = "\"\\/\b\f\n\r\t";
    if (const char* place = c ? std::strchr(kFrom, c) : nullptr) {
      strings->push_back(kTo[place - kFrom]);
      ++at_;
      return;
    }
    if (!take('u')) wrong("an escape");
    char32_t unit = hex4();
    if (unit >= 0xD800 && unit < 0xDC00) {
      if (!take('\\') || !take('u')) wrong("the second half of a surrogate pair");
      const char32_t low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) wrong("the second half of a surrogate pair");
      unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
    } else if (unit >= 0xDC00 && unit < 0xE000) {
      wrong("the first half of a surrogate pair");
    }
    utf8::append(strings, unit);
  }

  char32_t hex4() {
    char32_t unit = 0;
    for (int i = 0; i < 4; ++i) {
      const int digit = hex_digit(peek());
      if (digit < 0) wrong("four hexadecimal digits");
      unit = unit * 16 + static_cast<char32_t>(digit);
      ++at_;
    }
    return unit;
  }

  void word(size_t index, std::string_view name, Kind kind) {
    if (text_.substr(at_, name.size()) != name) wrong("a value");
    at_ += name.size();
    document_.nodes_[index].kind = kind;
  }

  void digits() {
    if (!is_digit(peek())) wrong("a digit");
    while (is_digit(peek())) ++at_;
  }

  void number(size_t index) {
    const char first = peek();
    if (first != '-' && !is_digit(first)) wrong("a value");
    take('-');
    if (!take('0')) digits();
    if (take('.')) digits();
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      digits();
    }
    document_.nodes_[index].kind = Kind::kNumber;
  }

  std::string_view text_;
  size_t max_values_;
  Document& document_;
  size_t at_ = 0;
};

Document::Document(std::string_view text, size_t max_values) : text_(text) {
  if (text.size() > kMaxBytes) {
    fail("it has " + std::to_string(text.size()) + " bytes, more than " + std::to_string(kMaxBytes));
  }
  const size_t bad = utf8::first_invalid(text);
  if (bad != text.size()) fail("it is not UTF-8 at byte " + std::to_string(bad));
  Parser(text, max_values, this).run();
}

std::string_view Document::view(Piece piece) const {
  const std::string_view from = piece.size & Piece::kUnescaped ? std::string_view(strings_) : text_;
  return from.substr(piece.begin, piece.size & ~Piece::kUnescaped);
}

Kind Value::kind() const { return document_->nodes_[index_].kind; }

const char* Value::kind_name() const {
  if (!document_) return "nothing";
  switch (kind()) {
    case Kind::kNull: return "null";
    case Kind::kFalse:
    case Kind::kTrue: return "a boolean";
    case Kind::kNumber: return "a number";
    case Kind::kString: return "a string";
    case Kind::kArray: return "an array";
    case Kind::kObject: return "an object";
  }
  return "";
}

void Value::expect(Kind kind, const char* name) const {
  if (is(kind)) return;
  std::string where;
  if (document_ && !key().empty()) where = quoted(key()) + ": ";
  fail(where + "expected " + name + ", found " + kind_name());
}

bool Value::boolean() const {
  if (is(Kind::kTrue)) return true;
  expect(Kind::kFalse, "a boolean");
  return false;
}

std::optional<int64_t> Value::whole() const {
  if (!is(Kind::kNumber)) return std::nullopt;
  const std::string_view text = source();
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

int64_t Value::integer() const {
  expect(Kind::kNumber, "a whole number");
  const std::optional<int64_t> value = whole();
  if (!value) {
    fail(quoted(key()) + ": expected a whole number of 64 bits, found " + std::string(source().substr(0, 40)));
  }
  return *value;
}

double Value::number() const {
  expect(Kind::kNumber, "a number");
  return std::strtod(std::string(source()).c_str(), nullptr);
}

std::string_view Value::string() const {
  expect(Kind::kString, "a string");
  return document_->view(document_->nodes_[index_].content);
}

Value::Iterator Value::begin() const {
  if (!is(Kind::kObject)) expect(Kind::kArray, "an array or an object");
  return Iterator(document_, index_ + 1);
}

Value::Iterator Value::end() const {
  if (!is(Kind::kObject)) expect(Kind::kArray, "an array or an object");
  return Iterator(document_, document_->nodes_[index_].next);
}

Value::Iterator& Value::Iterator::operator++() {
  index_ = document_->nodes_[index_].next;
  return *this;
}

size_t Value::size() const {
  if (!is(Kind::kObject)) expect(Kind::kArray, "an array or an object");
  return document_->nodes_[index_].content.size;
}

std::string_view Value::key() const {
  return document_->view(document_->nodes_[index_].key);
}

Value Value::find(std::string_view key) const {
  expect(Kind::kObject, "an object");
  Value found;
  for (Value member : *this) {
    if (member.key() != key) continue;
    if (found) fail("the key " + quoted(key) + " stands there twice");
    found = member;
  }
  return found;
}

Value Value::at(std::string_view key) const {
  const Value found = find(key);
  if (!found) fail("the key " + quoted(key) + " is missing");
  return found;
}

std::string_view Value::source() const {
  const Document::Node& node = document_->nodes_[index_];
  return document_->text_.substr(node.source, node.source_size);
}

}  // namespace shiftadd::json
