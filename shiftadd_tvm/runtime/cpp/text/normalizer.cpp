#include "normalizer.h"

#include "failure.h"
#include "../src/utf8.h"

namespace shiftadd::text {

Pattern read_pattern(json::Value value) {
  if (const json::Value text = value.find("String")) return Pattern::literal(utf8::decode_all(text.string()));
  return Pattern(utf8::decode_all(value.at("Regex").string()));
}

void Normalizer::read(json::Value value) {
  if (value.missing_or_null()) return;
  const std::string_view type = value.at("type").string();
  if (type == "Sequence") {
    for (const json::Value part : value.at("normalizers")) read(part);
  } else if (type == "NFC") {
    steps_.push_back(Form::kNfc);
  } else if (type == "NFD") {
    steps_.push_back(Form::kNfd);
  } else if (type == "NFKC") {
    steps_.push_back(Form::kNfkc);
  } else if (type == "NFKD") {
    steps_.push_back(Form::kNfkd);
  } else if (type == "Prepend") {
    steps_.push_back(Prepend{utf8::decode_all(value.at("prepend").string())});
  } else if (type == "Replace") {
    steps_.push_back(
        Replace{read_pattern(value.at("pattern")), utf8::decode_all(value.at("content").string())});
  } else if (type == "Strip") {
    steps_.push_back(Strip{value.at("strip_left").boolean(), value.at("strip_right").boolean()});
  } else {
    unsupported("a normalizer of type " + quoted(type));
  }
}

std::u32string replaced(std::u32string_view text, const Pattern& pattern, std::u32string_view content) {
  std::u32string result;
  size_t at = 0;
  for (const Pattern::Match& match : pattern.find_all(text)) {
    result.append(text, at, match.begin - at).append(content);
    at = match.end;
  }
  return result.append(text, at);
}

void Normalizer::apply(const Step& step, std::u32string* text) {
  if (const Form* form = std::get_if<Form>(&step)) {
    *text = normalize(*form, *text);
  } else if (const Prepend* prepend = std::get_if<Prepend>(&step)) {
    if (!text->empty()) text->insert(0, prepend->text);
  } else if (const Replace* replace = std::get_if<Replace>(&step)) {
    if (!text->empty()) *text = replaced(*text, replace->pattern, replace->content);
  } else if (const Strip* strip = std::get_if<Strip>(&step)) {
    size_t begin = 0, end = text->size();
    while (strip->left && begin < end && is_space((*text)[begin])) ++begin;
    while (strip->right && end > begin && is_space((*text)[end - 1])) --end;
    *text = text->substr(begin, end - begin);
  }
}

std::u32string Normalizer::run(std::u32string text) const {
  for (const Step& step : steps_) apply(step, &text);
  return text;
}

}  // namespace shiftadd::text
