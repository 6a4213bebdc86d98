// flat_map.h: a hash table of 64-bit keys and values, filled once and then only read.
#ifndef SHIFTADD_TEXT_FLAT_MAP_H_
#define SHIFTADD_TEXT_FLAT_MAP_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace shiftadd::text {

inline uint64_t mixed(uint64_t key) {  // the last steps of MurmurHash3
  key ^= key >> 33;
  key *= 0xFF51AFD7ED558CCDull;
  key ^= key >> 33;
  key *= 0xC4CEB9FE1A85EC53ull;
  return key ^ (key >> 33);
}

inline uint64_t pair_key(uint32_t high, uint32_t low) { return (uint64_t{high} << 32) | low; }

class FlatMap {
 public:
  static constexpr uint64_t kMissing = ~uint64_t{0};  // neither a key nor a value

  uint64_t find(uint64_t key) const {
    if (slots_.empty()) return kMissing;
    for (size_t at = mixed(key) & mask_;; at = (at + 1) & mask_) {
      if (slots_[at].key == key) return slots_[at].value;
      if (slots_[at].key == kMissing) return kMissing;
    }
  }

  void reserve(size_t count) {
    while (slots_.size() < 2 * count) grow();
  }

  void set(uint64_t key, uint64_t value) {  // a later value replaces an earlier one
    if ((count_ + 1) * 2 > slots_.size()) grow();
    place(key, value);
  }

 private:
  struct Slot {
    uint64_t key = kMissing, value = kMissing;
  };

  void place(uint64_t key, uint64_t value) {
    size_t at = mixed(key) & mask_;
    while (slots_[at].key != key && slots_[at].key != kMissing) at = (at + 1) & mask_;
    if (slots_[at].key == kMissing) ++count_;
    slots_[at] = {key, value};
  }

  void grow() {
    std::vector<Slot> old(slots_.empty() ? 16 : slots_.size() * 2);
    old.swap(slots_);
    mask_ = slots_.size() - 1;
    count_ = 0;
    for (const Slot& slot : old) {
      if (slot.key != kMissing) place(slot.key, slot.value);
    }
  }

  std::vector<Slot> slots_;
  size_t mask_ = 0, count_ = 0;
};

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_FLAT_MAP_H_
