#include "unicode.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

namespace shiftadd::text {

namespace {

struct Decomposition {
  uint32_t code;
  uint16_t canonical, canonical_size;  // in kPool
  uint16_t compatible, compatible_size;
};

struct Composition {
  uint32_t first, second, composed;
};

#include "unicode_data.inc"

// Hangul syllables are composed by arithmetic (Unicode, chapter 3.12).
constexpr char32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTrails = 0x11A7;
constexpr char32_t kLeadCount = 19, kVowelCount = 21, kTrailCount = 28;
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTrailCount;

template <size_t kCount>
uint8_t find_run(const uint32_t (&runs)[kCount], char32_t code) {
  const uint32_t key = (static_cast<uint32_t>(code) << 8) | 0xFF;
  return static_cast<uint8_t>(*(std::upper_bound(std::begin(runs), std::end(runs), key) - 1));
}

std::array<uint8_t, 256> first_properties() {
  std::array<uint8_t, 256> table{};
  for (char32_t code = 0; code < 256; ++code) table[code] = find_run(kRuns, code);
  return table;
}

uint8_t combining_class(char32_t code) { return code < 0x300 ? 0 : find_run(kCombining, code); }

void decompose(char32_t code, bool compatible, std::u32string* out) {
  if (code - kSyllables < kSyllableCount) {
    const char32_t index = code - kSyllables;
    out->push_back(kLeads + index / (kVowelCount * kTrailCount));
    out->push_back(kVowels + index % (kVowelCount * kTrailCount) / kTrailCount);
    if (index % kTrailCount) out->push_back(kTrails + index % kTrailCount);
    return;
  }
  const auto less = [](const Decomposition& row, char32_t value) { return row.code < value; };
  const auto* row = std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), code, less);
  if (code < 0xA0 || row == std::end(kDecompositions) || row->code != code) {
    out->push_back(code);
    return;
  }
  const uint32_t* begin = kPool + (compatible ? row->compatible : row->canonical);
  out->append(begin, begin + (compatible ? row->compatible_size : row->canonical_size));
}

// Sort each run of combining marks by class, stably.
void sort_marks(std::u32string* text) {
  std::vector<std::pair<uint8_t, char32_t>> marks;
  for (size_t begin = 0; begin < text->size();) {
    marks.clear();
    size_t end = begin;
    for (; end < text->size(); ++end) {
      const uint8_t value = combining_class((*text)[end]);
      if (value == 0) break;
      marks.push_back({value, (*text)[end]});
    }
    if (marks.size() > 1) {
      std::stable_sort(marks.begin(), marks.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
      for (size_t i = 0; i < marks.size(); ++i) (*text)[begin + i] = marks[i].second;
    }
    begin = end + 1;
  }
}

// The composition of two code points; 0 where there is none.
char32_t compose_pair(char32_t first, char32_t second) {
  if (first - kLeads < kLeadCount && second - kVowels < kVowelCount) {
    return kSyllables + ((first - kLeads) * kVowelCount + (second - kVowels)) * kTrailCount;
  }
  if (first - kSyllables < kSyllableCount && (first - kSyllables) % kTrailCount == 0 &&
      second - kTrails - 1 < kTrailCount - 1) {
    return first + (second - kTrails);
  }
  const auto less = [](const Composition& row, const std::pair<char32_t, char32_t>& pair) {
    return row.first != pair.first ? row.first < pair.first : row.second < pair.second;
  };
  const auto* row = std::lower_bound(std::begin(kCompositions), std::end(kCompositions),
                                     std::pair(first, second), less);
  const bool found = row != std::end(kCompositions) && row->first == first && row->second == second;
  return found ? row->composed : 0;
}

// Compose each starter with the marks behind it that nothing of the same class keeps from it.
void compose(std::u32string* text) {
  constexpr size_t kNone = ~size_t{0};
  size_t starter = kNone, out = 0;
  int last = -1;  // the class of the last code point that stayed behind the starter; -1: none did
  for (const char32_t code : *text) {
    const int value = combining_class(code);
    if (starter != kNone && last < value) {
      if (const char32_t composed = compose_pair((*text)[starter], code)) {
        (*text)[starter] = composed;
        continue;
      }
    }
    if (value == 0) {
      starter = out;
      last = -1;
    } else {
      last = value;
    }
    (*text)[out++] = code;
  }
  text->resize(out);
}

}  // namespace

uint8_t properties(char32_t code) {
  static const std::array<uint8_t, 256> kFirst = first_properties();
  return code < 256 ? kFirst[code] : find_run(kRuns, code);
}

std::u32string normalize(Form form, std::u32string_view text) {
  const bool compatible = form == Form::kNfkc || form == Form::kNfkd;
  std::u32string result;
  result.reserve(text.size());
  for (const char32_t code : text) decompose(code, compatible, &result);
  sort_marks(&result);
  if (form == Form::kNfc || form == Form::kNfkc) compose(&result);
  return result;
}

}  // namespace shiftadd::text
