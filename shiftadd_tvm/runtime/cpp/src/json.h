// A JSON reader for hostile files: bounded in depth and in values, and strict.
//
// It keeps what an artifact needs: strings are decoded; whole numbers that fit are int64; other numbers
// are only checked, and known by their text. Of a key that stands twice the last value counts.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shiftadd::internal {

// Why a text is no JSON, and where: "... at byte 17".
struct JsonError {
  std::string reason;
};

class Json {
 public:
  enum class Type : uint8_t { null, boolean, integer, number, string, array, object };

  // Read `text`, which must outlive the result; JsonError unless it is one JSON value.
  static Json parse(std::string_view text);

  Type type() const { return type_; }
  bool is(Type type) const { return type_ == type; }
  bool boolean() const { return integer_ != 0; }
  int64_t integer() const { return integer_; }
  const std::string& string() const { return string_; }
  const std::vector<Json>& items() const { return items_; }      // of an array, or an object's values
  const std::vector<std::string>& keys() const { return keys_; }  // of an object

  // The value of a key of an object; nullptr where there is none, or no object.
  const Json* find(std::string_view key) const;

  // The value as it stands in the text.
  std::string_view source() const { return source_; }

 private:
  friend class JsonReader;

  Type type_ = Type::null;
  int64_t integer_ = 0;
  std::string_view source_;
  std::string string_;
  std::vector<std::string> keys_;
  std::vector<Json> items_;
};

}  // namespace shiftadd::internal
