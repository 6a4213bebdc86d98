#include "json.h"

#include <charconv>
#include <cstddef>

namespace shiftadd::internal {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxValues = 500'000;  // some 60 MB; a model of 80 layers has 20,000

// The bytes of the valid UTF-8 character that begins at `at`, or 0.
size_t utf8_character(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) -> unsigned { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(at);
  if (first < 0x80) return 1;
  const size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || at + size > text.size()) return 0;
  unsigned code = first & (0xFF >> (size + 1));
  for (size_t i = 1; i < size; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
    code = code << 6 | (byte(at + i) & 0x3F);
  }
  const bool overlong = (size == 3 && code < 0x800) || (size == 4 && code < 0x10000);
  return overlong || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000) ? 0 : size;
}

void append_utf8(std::string& out, unsigned code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  out += static_cast<char>((0xF00 >> more & 0xFF) | code >> (6 * more));
  for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (code >> (6 * i) & 0x3F));
}

}  // namespace

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json read() {
    Json value = read_value(0);
    skip_space();
    if (at_ != text_.size()) stop("more text after the value");
    return value;
  }

 private:
  [[noreturn]] void stop(const char* what) const {
    throw JsonError{std::string(what) + " at byte " + std::to_string(at_)};
  }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
      ++at_;
    }
  }

  bool take(char expected) {
    if (at_ == text_.size() || text_[at_] != expected) return false;
    ++at_;
    return true;
  }

  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json read_value(int depth) {
    if (depth > kMaxDepth) stop("too many levels");
    if (++values_ > kMaxValues) stop("too many values");
    skip_space();
    Json value;
    const size_t begin = at_;
    if (at_ == text_.size()) stop("no value");
    if (text_[at_] == '{') {
      read_object(value, depth);
    } else if (text_[at_] == '[') {
      read_array(value, depth);
    } else if (text_[at_] == '"') {
      value.type_ = Json::Type::string;
      value.string_ = read_string();
    } else if (take_word("true")) {
      value.type_ = Json::Type::boolean;
      value.integer_ = 1;
    } else if (take_word("false")) {
      value.type_ = Json::Type::boolean;
    } else if (!take_word("null")) {
      read_number(value);
    }
    value.source_ = text_.substr(begin, at_ - begin);
    return value;
  }

  void read_object(Json& value, int depth) {
    value.type_ = Json::Type::object;
    ++at_;
    skip_space();
    if (take('}')) return;
    do {
      skip_space();
      if (at_ == text_.size() || text_[at_] != '"') stop("no key");
      value.keys_.push_back(read_string());
      skip_space();
      if (!take(':')) stop("no colon");
      value.items_.push_back(read_value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take('}')) stop("an object without an end");
  }

  void read_array(Json& value, int depth) {
    value.type_ = Json::Type::array;
    ++at_;
    skip_space();
    if (take(']')) return;
    do {
      value.items_.push_back(read_value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) stop("a list without an end");
  }

  size_t digits() {
    const size_t begin = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    return at_ - begin;
  }

  void read_number(Json& value) {
    const size_t begin = at_;
    take('-');
    const size_t first = at_;
    const size_t whole = digits();
    if (whole == 0 || (whole > 1 && text_[first] == '0')) stop("no JSON value");
    bool integer = true;
    if (take('.')) {
      integer = false;
      if (digits() == 0) stop("no digit after the point");
    }
    if (take('e') || take('E')) {
      integer = false;
      if (!take('+')) take('-');
      if (digits() == 0) stop("no digit in the exponent");
    }
    const char* end = text_.data() + at_;
    const auto parsed = std::from_chars(text_.data() + begin, end, value.integer_);
    value.type_ = integer && parsed.ec == std::errc() && parsed.ptr == end ? Json::Type::integer : Json::Type::number;
  }

  unsigned read_hex() {
    unsigned code = 0;
    const std::string_view four = text_.substr(at_, 4);
    const auto parsed = std::from_chars(four.data(), four.data() + four.size(), code, 16);
    if (four.size() != 4 || parsed.ptr != four.data() + 4) stop("a bad \\u escape");
    at_ += 4;
    return code;
  }

  void read_escape(std::string& out) {
    static constexpr std::string_view kNames = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    if (at_ == text_.size()) stop("a string without an end");
    const char name = text_[at_++];
    if (const size_t place = kNames.find(name); place != kNames.npos) {
      out += kMeant[place];
      return;
    }
    if (name != 'u') stop("an unknown escape");
    unsigned code = read_hex();
    if (code >= 0xD800 && code < 0xDC00 && take_word("\\u")) {
      const unsigned low = read_hex();
      if (low < 0xDC00 || low >= 0xE000) stop("half a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xD800 && code < 0xE000) {
      stop("half a surrogate pair");
    }
    append_utf8(out, code);
  }

  std::string read_string() {
    std::string out;
    ++at_;
    while (at_ < text_.size() && text_[at_] != '"') {
      const unsigned char c = static_cast<unsigned char>(text_[at_]);
      if (c < 0x20) stop("a control character");
      if (c == '\\') {
        ++at_;
        read_escape(out);
        continue;
      }
      const size_t size = utf8_character(text_, at_);
      if (size == 0) stop("no UTF-8");
      out.append(text_, at_, size);
      at_ += size;
    }
    if (!take('"')) stop("a string without an end");
    return out;
  }

  std::string_view text_;
  size_t at_ = 0;
  size_t values_ = 0;
};

Json Json::parse(std::string_view text) { return JsonReader(text).read(); }

const Json* Json::find(std::string_view key) const {
  for (size_t i = keys_.size(); i-- > 0;) {
    if (keys_[i] == key) return &items_[i];
  }
  return nullptr;
}

}  // namespace shiftadd::internal
