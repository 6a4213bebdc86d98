#include "decoder.h"

#include "failure.h"
#include "normalizer.h"
#include "pretokenizer.h"
#include "../src/utf8.h"

namespace shiftadd::text {

namespace {

constexpr char kReplacementBytes[] = "\xEF\xBF\xBD";

char32_t one_letter(json::Value value, const char* name) {
  const std::u32string letters = utf8::decode_all(value.at(name).string());
  if (letters.size() != 1) bad_file(std::string("a decoder's ") + name + " is not one letter");
  return letters[0];
}

size_t count(json::Value value, const char* name) {
  const int64_t number = value.at(name).integer();
  if (number < 0) bad_file(std::string("a decoder's ") + name + " is negative");
  return static_cast<size_t>(number);
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = static_cast<char>(c | 32);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// The byte of a token like <0x41>; -1 for any other token.
int fallback_byte(const std::string& token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return -1;
  const int low = hex_digit(token[4]);
  if (token[3] == '+') return low;  // Rust's from_str_radix takes a sign
  const int high = hex_digit(token[3]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace

Decoder::Decoder(json::Value value) : spaced_(value.missing_or_null()) {
  if (!spaced_) read(value);
}

void Decoder::read(json::Value value) {
  const std::string_view type = value.at("type").string();
  if (type == "Sequence") {
    for (const json::Value part : value.at("decoders")) read(part);
  } else if (type == "ByteLevel") {
    steps_.push_back(ByteLevel{});
  } else if (type == "ByteFallback") {
    steps_.push_back(ByteFallback{});
  } else if (type == "Fuse") {
    steps_.push_back(Fuse{});
  } else if (type == "Metaspace") {
    const json::Value scheme = value.find("prepend_scheme"), space = value.find("add_prefix_space");
    const bool never = (scheme && scheme.string() == "never") ||
                       (!space.missing_or_null() && !space.boolean());
    steps_.push_back(Metaspace{one_letter(value, "replacement"), !never});
  } else if (type == "Replace") {
    steps_.push_back(
        Replace{read_pattern(value.at("pattern")), utf8::decode_all(value.at("content").string())});
  } else if (type == "Strip") {
    steps_.push_back(Strip{one_letter(value, "content"), count(value, "start"), count(value, "stop")});
  } else {
    unsupported("a decoder of type " + quoted(type));
  }
}

std::string Decoder::run(Tokens tokens) const {
  for (const Step& step : steps_) {
    tokens = std::visit([&tokens](const auto& known) { return apply(known, tokens); }, step);
  }
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (spaced_ && i > 0) text += ' ';
    text += tokens[i];
  }
  return text;
}

Decoder::Tokens Decoder::apply(const ByteLevel&, const Tokens& tokens) {
  std::string bytes, letters;
  for (const std::string& token : tokens) {
    letters.clear();
    bool known = true;
    for (size_t at = 0; known && at < token.size();) {
      const utf8::Decoded letter = utf8::decode(token, at);
      const int byte = letter_byte(letter.code);
      known = byte >= 0;
      letters.push_back(static_cast<char>(byte));
      at += letter.size;
    }
    bytes += known ? letters : token;
  }
  return {utf8::repaired(bytes)};
}

Decoder::Tokens Decoder::apply(const ByteFallback&, const Tokens& tokens) {
  Tokens result;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (utf8::first_invalid(bytes) == bytes.size()) {
      result.push_back(bytes);
    } else {
      result.insert(result.end(), bytes.size(), kReplacementBytes);
    }
    bytes.clear();
  };
  for (const std::string& token : tokens) {
    const int byte = fallback_byte(token);
    if (byte >= 0) {
      bytes.push_back(static_cast<char>(byte));
      continue;
    }
    flush();
    result.push_back(token);
  }
  flush();
  return result;
}

Decoder::Tokens Decoder::apply(const Fuse&, const Tokens& tokens) {
  std::string text;
  for (const std::string& token : tokens) text += token;
  return {text};
}

Decoder::Tokens Decoder::apply(const Metaspace& step, const Tokens& tokens) {
  Tokens result;
  for (const std::string& token : tokens) {
    std::u32string letters;
    for (const char32_t code : utf8::decode_all(token)) {
      if (code != step.replacement) letters.push_back(code);
      else if (!result.empty() || !step.drop_first) letters.push_back(U' ');
    }
    result.push_back(utf8::encode(letters));
  }
  return result;
}

Decoder::Tokens Decoder::apply(const Replace& step, const Tokens& tokens) {
  Tokens result;
  for (const std::string& token : tokens) {
    result.push_back(
        token.empty() ? token : utf8::encode(replaced(utf8::decode_all(token), step.pattern, step.content)));
  }
  return result;
}

Decoder::Tokens Decoder::apply(const Strip& step, const Tokens& tokens) {
  Tokens result;
  for (const std::string& token : tokens) {
    const std::u32string letters = utf8::decode_all(token);
    size_t begin = 0, end = letters.size();
    while (begin < letters.size() && begin < step.start && letters[begin] == step.content) ++begin;
    while (end > begin && letters.size() - end < step.stop && letters[end - 1] == step.content) --end;
    result.push_back(utf8::encode(std::u32string_view(letters).substr(begin, end - begin)));
  }
  return result;
}

}  // namespace shiftadd::text
