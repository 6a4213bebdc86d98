// The cache of keys and values: tensors of pages, and who holds which page.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "manifest.h"
#include "memory.h"
#include "tvm.h"

namespace shiftadd::internal {

// Thread-safe. A page may be shared by sequences; who wants to write into a shared one copies it first.
class Cache {
 public:
  // As many pages as `sequences` full contexts need, of every tensor that `function` (a decode step)
  // reads pages of, in `memory`. Failure no memory.
  Cache(const Signature& function, const Decoder& decoder, int32_t sequences, const Memory& memory);

  // The tensors, by the names of the inputs that take them.
  struct Tensor {
    std::string name;
    Object tensor;
    size_t parts;  // runs of pages in memory, one after the other
    size_t bytes;  // of a page in one part
  };
  const std::vector<Tensor>& tensors() const { return tensors_; }

  int32_t take();                // Failure no memory: none is free
  int32_t copy(int32_t page);    // a page of the caller's own with the same content
  void share(int32_t page);      // one more holder
  void release(int32_t page);    // one holder less
  bool is_shared(int32_t page) const;
  int32_t free_pages() const;

 private:
  const Memory memory_;
  int32_t pages_;
  std::vector<Tensor> tensors_;
  mutable std::mutex mutex_;
  std::vector<int32_t> holders_;   // of each page that was ever taken
  std::vector<int32_t> returned_;  // the last one is taken first: its memory is warm
};

}  // namespace shiftadd::internal
