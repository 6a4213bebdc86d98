#include "utf8.h"

#include <cstdint>
#include <cstring>

namespace shiftadd::utf8 {

namespace {

constexpr uint64_t kNoAscii = 0x8080808080808080;  // bits that ASCII has not

struct Lead {
  size_t size;         // of the whole sequence; 0: no sequence begins so
  uint8_t low, high;   // what the second byte may be
};

Lead classify(uint8_t byte) {
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Decoded decode(std::string_view text, size_t at) {
  const uint8_t first = static_cast<uint8_t>(text[at]);
  if (first < 0x80) return {first, 1, true};
  const Lead lead = classify(first);
  if (lead.size == 0) return {kReplacement, 1, false};
  char32_t code = first & (0xFFu >> (lead.size + 1));
  for (size_t i = 1; i < lead.size; ++i) {
    const uint8_t byte = at + i < text.size() ? static_cast<uint8_t>(text[at + i]) : 0;
    const uint8_t low = i == 1 ? lead.low : 0x80, high = i == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) return {kReplacement, i, false};
    code = (code << 6) | (byte & 0x3F);
  }
  return {code, lead.size, true};
}

size_t first_invalid(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t eight = kNoAscii;  // most of a file is ASCII: pass eight bytes at once
    if (text.size() - at >= sizeof eight) std::memcpy(&eight, text.data() + at, sizeof eight);
    if (!(eight & kNoAscii)) {
      at += sizeof eight;
      continue;
    }
    if (static_cast<uint8_t>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Decoded decoded = decode(text, at);
    if (!decoded.valid) return at;
    at += decoded.size;
  }
  return at;
}

void append(std::string* text, char32_t code) {
  const auto push = [text](char32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    push(code);
  } else if (code < 0x800) {
    push(0xC0 | (code >> 6));
    push(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    push(0xE0 | (code >> 12));
    push(0x80 | ((code >> 6) & 0x3F));
    push(0x80 | (code & 0x3F));
  } else {
    push(0xF0 | (code >> 18));
    push(0x80 | ((code >> 12) & 0x3F));
    push(0x80 | ((code >> 6) & 0x3F));
    push(0x80 | (code & 0x3F));
  }
}

std::string encode(std::u32string_view codes) {
  std::string text;
  text.reserve(codes.size());
  for (const char32_t code : codes) append(&text, code);
  return text;
}

std::u32string decode_all(std::string_view text) {
  std::u32string codes;
  codes.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Decoded decoded = decode(text, at);
    codes.push_back(decoded.code);
    at += decoded.size;
  }
  return codes;
}

std::string repaired(std::string_view text) {
  if (first_invalid(text) == text.size()) return std::string(text);
  return encode(decode_all(text));
}

}  // namespace shiftadd::utf8
