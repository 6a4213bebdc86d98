// CodeSet of pattern.h.
#include <algorithm>

#include "failure.h"
#include "pattern.h"
#include "unicode.h"

namespace shiftadd::text {

namespace {

constexpr size_t kMaxRanges = 1024;

}  // namespace

void CodeSet::add_range(char32_t low, char32_t high) {
  if (ranges_.size() >= kMaxRanges) unsupported("a class of more than 1024 ranges");
  ranges_.push_back({low, high});
}

void CodeSet::add_properties(uint8_t mask, uint8_t value, bool negated) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    if (((byte & mask) == value) != negated) by_properties_[byte] = true;
  }
}

// `name` is a general category, such as "Lu", or the first letter of several, such as "L".
void CodeSet::add_category(std::string_view name, bool negated) {
  std::array<bool, 32> wanted{};
  bool known = false;
  for (int category = 0; category < kCategoryCount; ++category) {
    const std::string_view full = kCategories[category];
    wanted[static_cast<size_t>(category)] = full == name || full.substr(0, 1) == name;
    known = known || wanted[static_cast<size_t>(category)];
  }
  if (!known) unsupported("the property \\p{" + std::string(name) + "}");
  for (unsigned byte = 0; byte < 256; ++byte) {
    if (wanted[byte & kCategoryMask] != negated) by_properties_[byte] = true;
  }
}

void CodeSet::add_class(char letter) {
  const bool negated = letter < 'a';
  switch (letter) {
    case 's':
    case 'S': add_properties(kSpace, kSpace, negated); return;
    case 'd':
    case 'D': add_category("Nd", negated); return;
    default: break;
  }
  for (unsigned byte = 0; byte < 256; ++byte) {  // \w: letters, marks, decimal digits, connectors
    const std::string_view name = (byte & kCategoryMask) < kCategoryCount
                                      ? kCategories[byte & kCategoryMask] : "Cn";
    const bool word = name[0] == 'L' || name[0] == 'M' || name == "Nd" || name == "Pc";
    if (word != negated) by_properties_[byte] = true;
  }
}

// Of ASCII letters, and of the two others that fold to some.
void CodeSet::add_other_case() {
  const auto ranges = ranges_;
  for (const auto& [low, high] : ranges) {
    if (high >= 128) unsupported("a letter outside of ASCII whose case does not matter");
    for (char32_t code = low; code <= high; ++code) {
      const char32_t folded = code | 32;
      if (folded < 'a' || folded > 'z') continue;
      ranges_.push_back({code ^ 32, code ^ 32});
      if (folded == 's') ranges_.push_back({0x17F, 0x17F});
      if (folded == 'k') ranges_.push_back({0x212A, 0x212A});
    }
  }
}

void CodeSet::finish() {
  for (char32_t code = 0; code < 128; ++code) ascii_[code] = look_up(code);
}

bool CodeSet::look_up(char32_t code) const {
  const auto inside = [code](const auto& range) { return range.first <= code && code <= range.second; };
  return (by_properties_[properties(code)] || std::any_of(ranges_.begin(), ranges_.end(), inside)) !=
         negated_;
}

bool CodeSet::contains(char32_t code) const { return code < 128 ? ascii_[code] : look_up(code); }

}  // namespace shiftadd::text
