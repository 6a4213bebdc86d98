#include "chat_form.h"

#include "failure.h"
#include "unicode.h"
#include "../src/utf8.h"

namespace shiftadd::text {

namespace {

constexpr const char* kPlaceNames[] = {"edge", "system", "user", "assistant"};
constexpr std::string_view kThought = "</think>";

// What Python's str.strip() takes away.
bool is_python_space(char32_t code) { return is_space(code) || (code >= 0x1C && code <= 0x1F); }

size_t end_of_text(std::u32string_view letters) {
  size_t end = letters.size();
  while (end > 0 && is_python_space(letters[end - 1])) --end;
  return end;
}

std::string without_end(std::string_view text) {
  const std::u32string letters = utf8::decode_all(text);
  return utf8::encode(std::u32string_view(letters).substr(0, end_of_text(letters)));
}

std::string stripped(std::string_view text) {
  const std::u32string letters = utf8::decode_all(text);
  const size_t end = end_of_text(letters);
  size_t begin = 0;
  while (begin < end && is_python_space(letters[begin])) ++begin;
  return utf8::encode(std::u32string_view(letters).substr(begin, end - begin));
}

std::string after_thought(std::string_view text) {
  const size_t found = text.rfind(kThought);
  if (found == text.npos) return std::string(text);
  const size_t begin = text.find_first_not_of('\n', found + kThought.size());
  return begin == text.npos ? "" : std::string(text.substr(begin));
}

}  // namespace

size_t ChatForm::place(std::string_view name) {
  size_t place = 0;
  while (place < kPlaces && name != kPlaceNames[place]) ++place;
  return place;
}

size_t ChatForm::known_place(std::string_view name) {
  if (place(name) == kPlaces) unsupported("a conversation with the role " + quoted(name));
  return place(name);
}

ChatForm::Change ChatForm::read_change(std::string_view name) {
  if (name == "none") return Change::kNone;
  if (name == "strip") return Change::kStrip;
  if (name == "strip-end") return Change::kStripEnd;
  if (name == "after-thought") return Change::kAfterThought;
  unsupported("a chat form with the change " + quoted(name));
}

ChatForm::ChatForm(json::Value root) {
  const int64_t version = root.at("version").integer();
  if (version != 1) unsupported("a chat form of version " + std::to_string(version));
  for (const json::Value row : root.at("content")) {
    for (const json::Value change : row) {
      changes_[known_place(row.key())][known_place(change.key())] = read_change(change.string());
    }
  }
  for (const json::Value row : root.at("between")) {
    for (const json::Value gap : row) {
      between_[known_place(row.key())][known_place(gap.key())] = std::string(gap.string());
    }
  }
}

void ChatForm::append(Change change, std::string_view content, std::string* text) {
  switch (change) {
    case Change::kNone: *text += content; break;
    case Change::kStrip: *text += stripped(content); break;
    case Change::kStripEnd:
      *text += content;
      *text = without_end(*text);
      break;
    case Change::kAfterThought: *text += after_thought(content); break;
  }
}

void ChatForm::join(size_t from, size_t to, std::string* text) const {
  if (!between_[from][to]) {
    const std::string what = to == 0     ? std::string("that ends with role ") + kPlaceNames[from]
                             : from == 0 ? std::string("that begins with role ") + kPlaceNames[to]
                                         : std::string("in which role ") + kPlaceNames[to] +
                                               " follows role " + kPlaceNames[from];
    usage("The model's chat template takes no conversation " + what + "; change the messages");
  }
  *text += *between_[from][to];
}

std::string ChatForm::render(const std::vector<Message>& messages) const {
  std::string text;
  size_t last = 0;
  for (const auto& [role, content] : messages) {
    const size_t now = place(role);
    if (now == 0 || now == kPlaces) {
      usage("The role " + quoted(role) + " is not known; expected system, user or assistant");
    }
    join(last, now, &text);
    append(changes_[last][now], content, &text);
    last = now;
  }
  if (messages.empty()) usage("The conversation is empty; give at least one message");
  join(last, 0, &text);
  return text;
}

}  // namespace shiftadd::text
