// The reader of json_document.h: one pass over the bytes, nodes in depth-first order.
#include "json_document.h"

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "failure.h"
#include "utf8.h"

namespace shiftadd::json {

namespace {

using text::quoted;

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
  Parser(std::string_view text, Document* document) : text_(text), document_(*document) {}

  void run() {
    skip_space();
    value(0, 0, 0);
    skip_space();
    if (at_ != text_.size()) wrong("nothing more");
  }

 private:
  using Node = Document::Node;

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
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) && text_[at_]) ++at_;
  }

  bool take(char c) {
    if (peek() != c || at_ >= text_.size()) return false;
    ++at_;
    return true;
  }

  void value(int depth, uint32_t key, uint32_t key_size) {
    if (depth > kMaxDepth) fail("it is nested more than " + std::to_string(kMaxDepth) + " deep");
    const uint32_t index = static_cast<uint32_t>(document_.nodes_.size());
    document_.nodes_.push_back({});
    document_.nodes_[index].key = key;
    document_.nodes_[index].key_size = key_size;
    const size_t begin = at_;
    switch (peek()) {
      case '{': container(index, depth, Kind::kObject, '}'); break;
      case '[': container(index, depth, Kind::kArray, ']'); break;
      case '"': string_value(index); break;
      case 't': word(index, "true", Kind::kTrue); break;
      case 'f': word(index, "false", Kind::kFalse); break;
      case 'n': word(index, "null", Kind::kNull); break;
      default: number(index);
    }
    Node& node = document_.nodes_[index];
    node.next = static_cast<uint32_t>(document_.nodes_.size());
    node.source = static_cast<uint32_t>(begin);
    node.source_size = static_cast<uint32_t>(at_ - begin);
  }

  void container(uint32_t index, int depth, Kind kind, char close) {
    ++at_;
    uint32_t count = 0;
    skip_space();
    if (!take(close)) {
      do {
        skip_space();
        uint32_t key = 0, key_size = 0;
        if (kind == Kind::kObject) {
          if (peek() != '"') wrong("a string");
          key = static_cast<uint32_t>(document_.strings_.size());
          string();
          key_size = static_cast<uint32_t>(document_.strings_.size()) - key;
          skip_space();
          if (!take(':')) wrong("':'");
          skip_space();
        }
        value(depth + 1, key, key_size);
        ++count;
        skip_space();
      } while (take(','));
      if (!take(close)) wrong(close == '}' ? "',' or '}'" : "',' or ']'");
    }
    document_.nodes_[index].kind = kind;
    document_.nodes_[index].size = count;
  }

  void string_value(uint32_t index) {
    const uint32_t begin = static_cast<uint32_t>(document_.strings_.size());
    string();
    Node& node = document_.nodes_[index];
    node.kind = Kind::kString;
    node.begin = begin;
    node.size = static_cast<uint32_t>(document_.strings_.size()) - begin;
  }

  void string() {  // appends to strings_
    std::string& strings = document_.strings_;
    ++at_;
    for (;;) {
      const size_t begin = at_;
      while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
             static_cast<unsigned char>(text_[at_]) >= 0x20) {
        ++at_;
      }
      strings.append(text_, begin, at_ - begin);
      if (at_ == text_.size() || static_cast<unsigned char>(text_[at_]) < 0x20) wrong("'\"'");
      if (text_[at_++] == '"') return;
      escape(&strings);
    }
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

  void word(uint32_t index, std::string_view name, Kind kind) {
    if (text_.substr(at_, name.size()) != name) wrong("a value");
    at_ += name.size();
    document_.nodes_[index].kind = kind;
  }

  void digits() {
    if (!is_digit(peek())) wrong("a digit");
    while (is_digit(peek())) ++at_;
  }

  void number(uint32_t index) {
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
  Document& document_;
  size_t at_ = 0;
};

Document::Document(std::string_view text) : text_(text) {
  if (text.size() > kMaxBytes) {
    fail("it has " + std::to_string(text.size()) + " bytes, more than " + std::to_string(kMaxBytes));
  }
  const size_t bad = utf8::first_invalid(text);
  if (bad != text.size()) fail("it is not UTF-8 at byte " + std::to_string(bad));
  Parser(text, this).run();
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

int64_t Value::integer() const {
  expect(Kind::kNumber, "a whole number");
  const std::string_view text = source();
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size()) {
    fail(quoted(key()) + ": expected a whole number of 64 bits, found " + std::string(text.substr(0, 40)));
  }
  return value;
}

double Value::number() const {
  expect(Kind::kNumber, "a number");
  return std::strtod(std::string(source()).c_str(), nullptr);
}

std::string_view Value::string() const {
  expect(Kind::kString, "a string");
  const Document::Node& node = document_->nodes_[index_];
  return std::string_view(document_->strings_).substr(node.begin, node.size);
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
  return document_->nodes_[index_].size;
}

std::string_view Value::key() const {
  const Document::Node& node = document_->nodes_[index_];
  return std::string_view(document_->strings_).substr(node.key, node.key_size);
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
