#include "pretokenizer.h"

#include <algorithm>
#include <array>

#include "failure.h"
#include "normalizer.h"
#include "unicode.h"
#include "../src/utf8.h"

namespace shiftadd::text {

namespace {

// GPT-2's, which ByteLevel has built in.
constexpr char32_t kByteLevelPattern[] =
    U"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// Printable bytes of Latin-1 stand for themselves, the others for the letters from 256 on.
struct ByteLetters {
  std::array<char32_t, 256> letters{};
  std::array<int, 512> bytes{};

  ByteLetters() {
    bytes.fill(-1);
    char32_t spare = 256;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
      letters[byte] = printable ? byte : spare++;
      bytes[letters[byte]] = static_cast<int>(byte);
    }
  }
};

const ByteLetters& byte_letters() {
  static const ByteLetters kLetters;
  return kLetters;
}

std::vector<Pattern::Match> find_codes(std::u32string_view text, const std::function<bool(char32_t)>& wanted) {
  std::vector<Pattern::Match> matches;
  for (size_t at = 0; at < text.size(); ++at) {
    if (wanted(text[at])) matches.push_back({at, at + 1});
  }
  return matches;
}

bool boolean_or(json::Value value, std::string_view name, bool fallback) {
  const json::Value found = value.find(name);
  return found.missing_or_null() ? fallback : found.boolean();
}

}  // namespace

char32_t byte_letter(uint8_t byte) { return byte_letters().letters[byte]; }
int letter_byte(char32_t letter) { return letter < 512 ? byte_letters().bytes[letter] : -1; }

void PreTokenizer::read(json::Value value) {
  if (value.missing_or_null()) return;
  const std::string_view type = value.at("type").string();
  if (type == "Sequence") {
    for (const json::Value part : value.at("pretokenizers")) read(part);
  } else if (type == "ByteLevel") {
    steps_.push_back(
        ByteLevel{boolean_or(value, "add_prefix_space", true), boolean_or(value, "use_regex", true)});
  } else if (type == "Digits") {
    steps_.push_back(Digits{boolean_or(value, "individual_digits", false)});
  } else if (type == "Split") {
    steps_.push_back(Split{read_pattern(value.at("pattern")), read_behavior(value),
                           boolean_or(value, "invert", false)});
  } else if (type == "Metaspace") {
    steps_.push_back(read_metaspace(value));
  } else {
    unsupported("a pre-tokenizer of type " + quoted(type));
  }
}

PreTokenizer::Behavior PreTokenizer::read_behavior(json::Value value) {
  const std::string_view name = value.at("behavior").string();
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  unsupported("a Split with behavior " + quoted(name));
}

PreTokenizer::Metaspace PreTokenizer::read_metaspace(json::Value value) {
  const std::u32string replacement = utf8::decode_all(value.at("replacement").string());
  if (replacement.size() != 1) bad_file("the replacement of a Metaspace is not one letter");
  Metaspace step{replacement[0], Prefix::kAlways, boolean_or(value, "split", true)};
  if (const json::Value scheme = value.find("prepend_scheme")) {
    const std::string_view name = scheme.string();
    if (name == "first") step.prefix = Prefix::kFirst;
    else if (name == "never") step.prefix = Prefix::kNever;
    else if (name != "always") unsupported("a Metaspace with prepend_scheme " + quoted(name));
  }
  if (!boolean_or(value, "add_prefix_space", true)) step.prefix = Prefix::kNever;
  return step;
}

void PreTokenizer::run(Words* words) const {
  for (const Step& step : steps_) {
    if (const Split* plain = std::get_if<Split>(&step)) {
      split([plain](std::u32string_view text) { return plain->pattern.find_all(text); },
            plain->behavior, plain->invert, words);
    } else if (const ByteLevel* bytes = std::get_if<ByteLevel>(&step)) {
      run_bytes(*bytes, words);
    } else if (const Digits* digits = std::get_if<Digits>(&step)) {
      split([](std::u32string_view text) { return find_codes(text, is_numeric); },
            digits->individual ? Behavior::kIsolated : Behavior::kContiguous, false, words);
    } else if (const Metaspace* metaspace = std::get_if<Metaspace>(&step)) {
      run_metaspace(*metaspace, words);
    }
  }
}

void PreTokenizer::split(const Finder& find, Behavior behavior, bool invert, Words* words) {
  std::vector<Words::Range> ranges;
  std::vector<Piece> pieces;
  for (const Words::Range& range : words->ranges) {
    const std::u32string_view word = words->word(range);
    pieces.clear();
    size_t at = 0;
    for (const Pattern::Match& match : find(word)) {
      if (at != match.begin) pieces.push_back({at, match.begin, invert});
      pieces.push_back({match.begin, match.end, !invert});
      at = match.end;
    }
    if (at != word.size()) pieces.push_back({at, word.size(), invert});
    join(pieces, behavior, range.begin, &ranges);
  }
  words->at_start = words->at_start && !ranges.empty() && !words->ranges.empty() &&
                    ranges[0].begin == words->ranges[0].begin;
  words->ranges = std::move(ranges);
}

// What becomes of the matches of a word and of what lies between them.
void PreTokenizer::join(const std::vector<Piece>& pieces, Behavior behavior, size_t offset,
                        std::vector<Words::Range>* ranges) {
  const size_t first = ranges->size();
  const bool backwards = behavior == Behavior::kMergedWithNext;
  bool previous = false;  // whether the piece before was a match
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& piece = pieces[backwards ? pieces.size() - 1 - i : i];
    const bool joined =
        i > 0 && (behavior == Behavior::kContiguous ? piece.match == previous
                  : behavior == Behavior::kMergedWithPrevious || backwards ? piece.match && !previous
                                                                           : false);
    previous = piece.match;
    if (behavior == Behavior::kRemoved && piece.match) continue;
    if (joined && backwards) ranges->back().begin = offset + piece.begin;
    else if (joined) ranges->back().end = offset + piece.end;
    else ranges->push_back({offset + piece.begin, offset + piece.end});
  }
  if (backwards) std::reverse(ranges->begin() + static_cast<std::ptrdiff_t>(first), ranges->end());
  const auto empty = [](const Words::Range& range) { return range.begin == range.end; };
  ranges->erase(std::remove_if(ranges->begin() + static_cast<std::ptrdiff_t>(first), ranges->end(), empty),
                ranges->end());
}

void PreTokenizer::run_bytes(const ByteLevel& step, Words* words) {
  if (step.add_prefix_space) {
    Words spaced;
    spaced.at_start = words->at_start;
    for (const Words::Range& range : words->ranges) {
      const size_t begin = spaced.text.size();
      if (words->text[range.begin] != U' ') spaced.text.push_back(U' ');
      spaced.text += words->word(range);
      spaced.ranges.push_back({begin, spaced.text.size()});
    }
    *words = std::move(spaced);
  }
  if (step.use_regex) {
    static const Pattern kPattern(kByteLevelPattern);
    split([](std::u32string_view text) { return kPattern.find_all(text); }, Behavior::kIsolated, false,
          words);
  }
  Words bytes;
  bytes.at_start = words->at_start;
  bytes.text.reserve(words->text.size());
  bytes.ranges.reserve(words->ranges.size());
  std::string encoded;
  for (const Words::Range& range : words->ranges) {
    const size_t begin = bytes.text.size();
    for (const char32_t code : words->word(range)) {
      encoded.clear();
      utf8::append(&encoded, code);
      for (const char byte : encoded) bytes.text.push_back(byte_letter(static_cast<uint8_t>(byte)));
    }
    bytes.ranges.push_back({begin, bytes.text.size()});
  }
  *words = std::move(bytes);
}

void PreTokenizer::run_metaspace(const Metaspace& step, Words* words) {
  Words marked;
  marked.at_start = words->at_start;
  for (size_t i = 0; i < words->ranges.size(); ++i) {
    const std::u32string_view word = words->word(words->ranges[i]);
    const bool wanted =
        step.prefix == Prefix::kAlways || (step.prefix == Prefix::kFirst && i == 0 && words->at_start);
    const size_t begin = marked.text.size();
    if (wanted && word[0] != U' ' && word[0] != step.replacement) marked.text.push_back(step.replacement);
    for (const char32_t code : word) marked.text.push_back(code == U' ' ? step.replacement : code);
    marked.ranges.push_back({begin, marked.text.size()});
  }
  *words = std::move(marked);
  if (!step.split) return;
  const auto find = [&step](std::u32string_view text) {
    return find_codes(text, [&step](char32_t code) { return code == step.replacement; });
  };
  split(find, Behavior::kMergedWithNext, false, words);
}

}  // namespace shiftadd::text
