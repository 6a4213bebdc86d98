// unicode.h: properties and normal forms of code points, as the `tokenizers` library knows them.
#ifndef SHIFTADD_TEXT_UNICODE_H_
#define SHIFTADD_TEXT_UNICODE_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace shiftadd::text {

// The names of the general categories; a category is its place here.
constexpr const char* kCategories[] = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl",
                                       "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc",
                                       "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"};
constexpr int kCategoryCount = 30;

// A byte of properties: the category in the lower five bits, and flags.
constexpr uint8_t kCategoryMask = 31;
constexpr uint8_t kWord = 32;     // part of a word beside an added token of `single_word`
constexpr uint8_t kNumeric = 64;  // what the pre-tokenizer Digits sets apart
constexpr uint8_t kSpace = 128;   // White_Space

uint8_t properties(char32_t code);
inline bool is_space(char32_t code) { return properties(code) & kSpace; }
inline bool is_numeric(char32_t code) { return properties(code) & kNumeric; }
inline bool is_word(char32_t code) { return properties(code) & kWord; }

enum class Form { kNfc, kNfd, kNfkc, kNfkd };
std::u32string normalize(Form form, std::u32string_view text);

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_UNICODE_H_
