// chat_form.h: a chat template as literal text between messages, as `compile` found it (docs/artifact.md).
#ifndef SHIFTADD_TEXT_CHAT_FORM_H_
#define SHIFTADD_TEXT_CHAT_FORM_H_

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../src/json.h"

namespace shiftadd::text {

class ChatForm {
 public:
  // Of the root of a chat_form.json; a Failure or a json::Error where it is none that is known here.
  explicit ChatForm(json::Value root);

  using Message = std::pair<std::string_view, std::string_view>;  // role, content
  // The conversation, open for the assistant's reply; a Failure where the template would refuse it.
  std::string render(const std::vector<Message>& messages) const;

 private:
  static constexpr size_t kPlaces = 4;  // the edge of the conversation, and three roles
  enum class Change { kNone, kStrip, kStripEnd, kAfterThought };

  static size_t place(std::string_view name);  // kPlaces: there is none of that name
  static size_t known_place(std::string_view name);
  static Change read_change(std::string_view name);
  static void append(Change change, std::string_view content, std::string* text);
  void join(size_t from, size_t to, std::string* text) const;

  template <typename Value>
  using Pairs = std::array<std::array<Value, kPlaces>, kPlaces>;  // of what comes first, and second
  Pairs<Change> changes_{};
  Pairs<std::optional<std::string>> between_;
};

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_CHAT_FORM_H_
