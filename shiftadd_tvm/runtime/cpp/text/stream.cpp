#include "stream.h"

#include "../src/utf8.h"

namespace shiftadd::text {

namespace {

constexpr size_t kContext = 16;  // tokens before a text that decide how its first token is written
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

bool ends_unfinished(const std::string& text) {
  return text.size() >= kReplacement.size() &&
         text.compare(text.size() - kReplacement.size(), kReplacement.size(), kReplacement) == 0;
}

size_t letters(std::string_view text) { return utf8::decode_all(text).size(); }

}  // namespace

Stream::Stream(const Tokenizer& tokenizer, const Id* prompt, size_t count) : tokenizer_(tokenizer) {
  const size_t kept = count < kContext ? count : kContext;
  before_.assign(prompt + (count - kept), prompt + count);
  for (const Id token : before_) step(token);
}

std::string Stream::push(Id token) {
  all_.push_back(token);
  std::string text = step(token);
  shown_ += letters(text);
  return text;
}

// A token's text is what it adds to the text of the tokens before it, since some decoders write a token
// differently at the beginning. Nothing is shown while the text ends with U+FFFD.
std::string Stream::step(Id token) {
  if (prefix_.empty() && !window_.empty()) {
    std::string text = tokenizer_.decode(window_, true);
    if (!ends_unfinished(text)) {
      prefix_ = std::move(text);
      settled_ = window_.size();
    }
  }
  window_.push_back(token);
  const std::string text = tokenizer_.decode(window_, true);
  // in code points: some decoders write tokens of bytes anew once others follow
  const size_t known = letters(prefix_);
  const std::u32string now = utf8::decode_all(text);
  if (now.size() <= known || ends_unfinished(text)) return {};
  const std::string added = utf8::encode(std::u32string_view(now).substr(known));
  window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(settled_));
  settled_ = window_.size();
  prefix_ = tokenizer_.decode(window_, true);
  return added;
}

std::string Stream::finish() {
  std::vector<Id> whole = before_;
  whole.insert(whole.end(), all_.begin(), all_.end());
  const size_t skipped = letters(tokenizer_.decode(before_, true)) + shown_;
  const std::u32string text = utf8::decode_all(tokenizer_.decode(whole, true));
  std::string rest = skipped < text.size() ? utf8::encode(std::u32string_view(text).substr(skipped)) : "";
  shown_ += letters(rest);
  return rest;
}

}  // namespace shiftadd::text
