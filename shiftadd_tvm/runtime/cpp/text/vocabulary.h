// vocabulary.h: tokens by id and ids by token.
#ifndef SHIFTADD_TEXT_VOCABULARY_H_
#define SHIFTADD_TEXT_VOCABULARY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace shiftadd::text {

using Id = int32_t;

class Vocabulary {
 public:
  // Make room for so many tokens at once.
  void reserve(size_t count);
  // Add a token; a Failure where it or its id is there already, or the id is out of all proportion.
  void add(std::string_view token, int64_t id);
  std::optional<Id> find(std::string_view token) const;
  // The same, where the id is likely to be `guess`: a look at that token is faster than a search.
  std::optional<Id> find(std::string_view token, Id guess) const;
  std::optional<std::string_view> token(Id id) const;
  size_t count() const { return entries_.size(); }
  Id end() const { return static_cast<Id>(by_id_.size()); }  // above the largest id

 private:
  struct Entry {
    size_t begin, size;
    Id id;
  };

  struct Slot {
    uint32_t entry = 0;  // + 1, or 0: it is free
    uint32_t hash = 0;   // most of what is not looked for is told apart by it
  };

  std::string_view text(const Entry& entry) const {
    return std::string_view(arena_).substr(entry.begin, entry.size);
  }
  void grow(size_t slots);
  size_t slot(std::string_view token, uint32_t hash) const;

  std::string arena_;
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;      // a power of two, at least twice the entries
  std::vector<uint32_t> by_id_;  // entry + 1, or 0
};

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_VOCABULARY_H_
