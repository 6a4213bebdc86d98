// json_document.h: read a JSON document whole, with limits, without ever recursing into what it says too deeply.
//
//     json::Document document(text);                     // throws json::Error
//     for (json::Value token : document.root().at("added_tokens")) token.at("id").integer();
//
// A document keeps a copy of its strings and a flat list of nodes; values point into it and into the text,
// and may outlive neither. Limits: 512 MiB of text, nesting of 100. Text must be UTF-8; NUL is allowed inside strings.
#ifndef SHIFTADD_TEXT_JSON_DOCUMENT_H_
#define SHIFTADD_TEXT_JSON_DOCUMENT_H_

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace shiftadd::json {

constexpr size_t kMaxBytes = size_t{512} << 20;
constexpr int kMaxDepth = 100;

// Text that is no JSON, or JSON that is not what was asked for; what() is a clause without a full stop.
class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Kind : uint8_t { kNull, kFalse, kTrue, kNumber, kString, kArray, kObject };

class Document;

// A node of a document, or nothing (the value of a missing key). Cheap to copy.
class Value {
 public:
  Value() = default;
  explicit operator bool() const { return document_ != nullptr; }

  bool is(Kind kind) const { return document_ && this->kind() == kind; }
  bool missing_or_null() const { return !document_ || kind() == Kind::kNull; }
  Kind kind() const;
  const char* kind_name() const;

  // What a scalar holds; an Error where it is something else.
  bool boolean() const;
  int64_t integer() const;
  double number() const;
  std::string_view string() const;

  // Elements of an array or members of an object, in their order; an Error for scalars.
  class Iterator;
  Iterator begin() const;
  Iterator end() const;
  size_t size() const;
  std::string_view key() const;  // of a member; empty for elements

  // A member: find() gives nothing, at() an Error where there is none; a key that stands twice is one too.
  Value find(std::string_view key) const;
  Value at(std::string_view key) const;

  // The text of the value as it stands in the document.
  std::string_view source() const;

 private:
  friend class Document;
  Value(const Document* document, uint32_t index) : document_(document), index_(index) {}
  void expect(Kind kind, const char* name) const;

  const Document* document_ = nullptr;
  uint32_t index_ = 0;
};

class Document {
 public:
  explicit Document(std::string_view text);
  Document(const Document&) = delete;
  Document& operator=(const Document&) = delete;

  Value root() const { return Value(this, 0); }

 private:
  friend class Value;
  friend class Parser;
  struct Node {
    Kind kind = Kind::kNull;
    uint32_t key = 0, key_size = 0;   // of a member, in strings_
    uint32_t begin = 0, size = 0;     // of a string in strings_; children of a container
    uint32_t next = 0;                // the node after this one and all it holds
    uint32_t source = 0, source_size = 0;
  };

  std::string_view text_;
  std::string strings_;
  std::vector<Node> nodes_;  // depth first: the children of a container follow it
};

class Value::Iterator {
 public:
  Iterator(const Document* document, uint32_t index) : document_(document), index_(index) {}
  Value operator*() const { return Value(document_, index_); }
  Iterator& operator++();
  bool operator!=(const Iterator& other) const { return index_ != other.index_; }

 private:
  const Document* document_;
  uint32_t index_;
};

}  // namespace shiftadd::json

#endif  // SHIFTADD_TEXT_JSON_DOCUMENT_H_
