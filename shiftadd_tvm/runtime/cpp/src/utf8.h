// utf8.h: code points and their bytes.
#ifndef SHIFTADD_UTF8_H_
#define SHIFTADD_UTF8_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace shiftadd::utf8 {

constexpr char32_t kReplacement = 0xFFFD;

// The place of the first byte that belongs to no code point; text.size() where all is well.
size_t first_invalid(std::string_view text);

// The code point at text[at] and its length in bytes. Of bytes that are none, the longest beginning of
// one (at least a byte), and U+FFFD: the way of Unicode's chapter 3.9, of Python and of Rust.
struct Decoded {
  char32_t code;
  size_t size;
  bool valid;
};
Decoded decode(std::string_view text, size_t at);

void append(std::string* text, char32_t code);
std::string encode(std::u32string_view codes);
std::u32string decode_all(std::string_view text);

// `text` with each sequence that is no code point replaced by U+FFFD.
std::string repaired(std::string_view text);

}  // namespace shiftadd::utf8

#endif  // SHIFTADD_UTF8_H_
