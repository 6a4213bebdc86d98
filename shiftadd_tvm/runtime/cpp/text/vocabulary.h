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
  // Add a token; a Failure where it or its id is there already, or the id is out of all proportion.
  void add(std::string_view token, int64_t id);
  std::optional<Id> find(std::string_view token) const;
  std::optional<std::string_view> token(Id id) const;
  size_t count() const { return entries_.size(); }
  Id end() const { return static_cast<Id>(by_id_.size()); }  // above the largest id

 private:
  struct Entry {
    size_t begin, size;
    Id id;
  };

  std::string_view text(const Entry& entry) const {
    return std::string_view(arena_).substr(entry.begin, entry.size);
  }
  void grow();
  size_t slot(std::string_view token) const;

  std::string arena_;
  std::vector<Entry> entries_;
  std::vector<uint32_t> slots_;  // entry + 1, or 0
  std::vector<uint32_t> by_id_;  // entry + 1, or 0
};

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_VOCABULARY_H_
