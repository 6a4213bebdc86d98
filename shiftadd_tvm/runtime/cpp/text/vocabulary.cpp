#include "vocabulary.h"

#include <functional>

#include "failure.h"
#include "flat_map.h"
#include "json_document.h"

namespace shiftadd::text {

namespace {

constexpr int64_t kMaxId = 1 << 24;

}  // namespace

size_t Vocabulary::slot(std::string_view token) const {
  const size_t mask = slots_.size() - 1;
  size_t at = mixed(std::hash<std::string_view>{}(token)) & mask;
  while (slots_[at] && text(entries_[slots_[at] - 1]) != token) at = (at + 1) & mask;
  return at;
}

void Vocabulary::grow() {
  slots_.assign(slots_.empty() ? 64 : slots_.size() * 2, 0);
  for (uint32_t i = 0; i < entries_.size(); ++i) slots_[slot(text(entries_[i]))] = i + 1;
}

void Vocabulary::add(std::string_view token, int64_t id) {
  if (id < 0 || id >= kMaxId) {
    bad_file("the token " + quoted(token) + " has id " + std::to_string(id) +
             ", expected 0 to " + std::to_string(kMaxId - 1));
  }
  if ((entries_.size() + 1) * 2 > slots_.size()) grow();
  const size_t at = slot(token);
  if (slots_[at]) bad_file("the token " + quoted(token) + " stands there twice");
  const size_t place = static_cast<size_t>(id);
  if (place >= by_id_.size()) by_id_.resize(place + 1);
  if (by_id_[place]) {
    bad_file("the tokens " + quoted(text(entries_[by_id_[place] - 1])) + " and " +
             quoted(token) + " have the same id " + std::to_string(id));
  }
  entries_.push_back({arena_.size(), token.size(), static_cast<Id>(id)});
  arena_ += token;
  slots_[at] = by_id_[place] = static_cast<uint32_t>(entries_.size());
}

std::optional<Id> Vocabulary::find(std::string_view token) const {
  if (slots_.empty()) return std::nullopt;
  const uint32_t entry = slots_[slot(token)];
  return entry ? std::optional<Id>(entries_[entry - 1].id) : std::nullopt;
}

std::optional<std::string_view> Vocabulary::token(Id id) const {
  if (id < 0 || id >= end() || !by_id_[static_cast<size_t>(id)]) return std::nullopt;
  return text(entries_[by_id_[static_cast<size_t>(id)] - 1]);
}

}  // namespace shiftadd::text
