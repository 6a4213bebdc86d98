#include "failure.h"

#include <cstring>

namespace shiftadd::internal {
namespace {

constexpr size_t kMaxQuote = 300;  // bytes of a file in a sentence
constexpr size_t kMaxSentence = 2048;

thread_local char last_sentence[kMaxSentence] = "";

// `size` or less, so that no character of UTF-8 is cut.
size_t whole_characters(std::string_view text, size_t size) {
  if (size >= text.size()) return text.size();
  while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xC0) == 0x80) --size;
  return size;
}

}  // namespace

std::string quoted(std::string_view text) {
  std::string shown(text.substr(0, whole_characters(text, kMaxQuote)));
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return shown;
}

shiftadd_status remember(shiftadd_status status, std::string_view sentence) noexcept {
  const size_t size = whole_characters(sentence, kMaxSentence - 1);
  std::memcpy(last_sentence, sentence.data(), size);
  last_sentence[size] = 0;
  return status;
}

}  // namespace shiftadd::internal

const char* shiftadd_last_error(void) { return shiftadd::internal::last_sentence; }
