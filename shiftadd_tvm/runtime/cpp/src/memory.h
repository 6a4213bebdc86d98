// Where the tensors of a model lie: in the machine's memory, or in a GPU's.
//
// Kernels for a GPU read and write its memory alone. All is copied in the order of the default stream,
// so that what is read back was computed before. What a GPU refuses is a Failure: no memory, or internal.
#pragma once

#include "tensors.h"

namespace shiftadd::internal {

inline constexpr DLDevice kHost = {kDLCPU, 0};

class Memory {
 public:
  explicit Memory(DLDevice device) : device_(device) {}

  DLDevice device() const { return device_; }
  bool is_host() const { return device_.device_type == kDLCPU; }

  // Zeros of this shape.
  Object zeros(const ElementType& type, const std::vector<int64_t>& shape) const;

  // The tensor in this memory: itself where it lies there already, else a copy.
  Object upload(const Object& tensor) const;

  // The tensor in the machine's memory: itself where it lies there already, else a copy.
  Object download(const Object& tensor) const;

  // Write a tensor of the machine's memory over `to`, which has as many bytes.
  void write(const Object& to, const void* data, size_t bytes) const;

  // Rows [begin, begin + count) of a tensor (n, width) of this memory: a view where kernels may load from
  // it, else a copy in the machine's memory.
  Object rows(const Object& tensor, size_t begin, size_t count) const;

  // Copy `bytes` within a tensor of this memory.
  void copy_within(const Object& tensor, size_t to, size_t from, size_t bytes) const;

 private:
  DLDevice device_;
};

}  // namespace shiftadd::internal
