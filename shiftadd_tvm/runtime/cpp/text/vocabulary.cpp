#include "vocabulary.h"

#include <functional>

#include "failure.h"
#include "flat_map.h"
#include "../src/json.h"

namespace shiftadd::text {

namespace {

constexpr int64_t kMaxId = 1 << 24;

uint32_t hash_of(std::string_view token) {
  return static_cast<uint32_t>(mixed(std::hash<std::string_view>{}(token)));
}

}  // namespace

size_t Vocabulary::slot(std::string_view token, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  while (slots_[at].entry && (slots_[at].hash != hash || text(entries_[slots_[at].entry - 1]) != token)) {
    at = (at + 1) & mask;
  }
  return at;
}

void Vocabulary::grow(size_t slots) {
  std::vector<Slot> old(slots);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (!slot.entry) continue;
    size_t at = slot.hash & (slots - 1);
    while (slots_[at].entry) at = (at + 1) & (slots - 1);
    slots_[at] = slot;
  }
}

void Vocabulary::reserve(size_t count) {
  size_t slots = 64;
  while (slots < 2 * count) slots *= 2;
  if (slots > slots_.size()) grow(slots);
  entries_.reserve(count);
  by_id_.reserve(count);
}

void Vocabulary::add(std::string_view token, int64_t id) {
  if (id < 0 || id >= kMaxId) {
    bad_file("the token " + quoted(token) + " has id " + std::to_string(id) +
             ", expected 0 to " + std::to_string(kMaxId - 1));
  }
  if ((entries_.size() + 1) * 2 > slots_.size()) grow(slots_.empty() ? 64 : slots_.size() * 2);
  const uint32_t hash = hash_of(token);
  const size_t at = slot(token, hash);
  if (slots_[at].entry) bad_file("the token " + quoted(token) + " stands there twice");
  const size_t place = static_cast<size_t>(id);
  if (place >= by_id_.size()) by_id_.resize(place + 1);
  if (by_id_[place]) {
    bad_file("the tokens " + quoted(text(entries_[by_id_[place] - 1])) + " and " +
             quoted(token) + " have the same id " + std::to_string(id));
  }
  entries_.push_back({arena_.size(), token.size(), static_cast<Id>(id)});
  arena_ += token;
  by_id_[place] = static_cast<uint32_t>(entries_.size());
  slots_[at] = {by_id_[place], hash};
}

std::optional<Id> Vocabulary::find(std::string_view token) const {
  if (slots_.empty()) return std::nullopt;
  const uint32_t entry = slots_[slot(token, hash_of(token))].entry;
  return entry ? std::optional<Id>(entries_[entry - 1].id) : std::nullopt;
}

std::optional<Id> Vocabulary::find(std::string_view token, Id guess) const {
  return this->token(guess) == token ? guess : find(token);
}

std::optional<std::string_view> Vocabulary::token(Id id) const {
  if (id < 0 || id >= end() || !by_id_[static_cast<size_t>(id)]) return std::nullopt;
  return text(entries_[by_id_[static_cast<size_t>(id)] - 1]);
}

}  // namespace shiftadd::text
