// json.h: read a JSON document whole, with limits, without ever recursing into what it says too deeply.
//
//     json::Document document(text);                     // throws json::Error
//     for (json::Value token : document.root().at("added_tokens")) token.at("id").integer();
//
// A document is a flat list of nodes; values point into it and into the text, and may outlive neither.
// Limits: 512 MiB of text, nesting of 100, and as many values as the caller expects at most (32 bytes each).
// Text must be UTF-8; NUL is allowed inside strings.
#ifndef SHIFTADD_JSON_H_
#define SHIFTADD_JSON_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace shiftadd::json {

constexpr size_t kMaxBytes = size_t{512} << 20;
constexpr int kMaxDepth = 100;
constexpr size_t kMaxValues = 16'000'000;  // of a tokenizer: half a million tokens and merges have 2 million

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

  // The whole number of 64 bits that this is, or nothing.
  std::optional<int64_t> whole() const;

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
  explicit Document(std::string_view text, size_t max_values = kMaxValues);
  Document(const Document&) = delete;
  Document& operator=(const Document&) = delete;

  Value root() const { return Value(this, 0); }

 private:
  friend class Value;
  friend class Parser;
  // A string: where its characters are. Those without an escape are left in the text.
  struct Piece {
    static constexpr uint32_t kUnescaped = uint32_t{1} << 31;  // of `size`: it lies in strings_
    uint32_t begin = 0, size = 0;
  };
  struct Node {
    Piece key;                // of a member
    Piece content;            // of a string; of a container, `size` counts its children
    uint32_t next = 0;        // the node after this one and all it holds
    uint32_t source = 0;      // where the value begins in the text
    uint32_t source_size = 0;
    Kind kind = Kind::kNull;
  };

  std::string_view view(Piece piece) const;

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

#endif  // SHIFTADD_JSON_H_
