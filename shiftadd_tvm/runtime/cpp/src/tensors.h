// Tensors that kernels read: views of memory with an owner, or small ones of their own.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "tensor_types.h"
#include "tvm.h"

namespace shiftadd::internal {

// A tensor over `data` of a device, which begins at a multiple of `alignment` (64 for what kernels read)
// and lives as long as `owner`.
Object view_tensor(std::shared_ptr<const void> owner, const void* data, const ElementType& type,
                   const std::vector<int64_t>& shape, DLDevice device = {kDLCPU, 0}, size_t alignment = 64);

// Zeros of this shape on pages of their own: aligned, and without memory until they are touched.
Object reserved_tensor(const ElementType& type, const std::vector<int64_t>& shape);

// A copy of `data`, aligned; unwritten memory for nullptr.
Object copied_tensor(const void* data, const ElementType& type, const std::vector<int64_t>& shape);

// The bytes of a dense tensor.
size_t tensor_bytes(const ElementType& type, const std::vector<int64_t>& shape);

// Where a tensor's numbers begin; its sizes; its bytes, where it is dense and of a known type.
const char* begin_of(const DLTensor& tensor);
std::vector<int64_t> shape_of(const DLTensor& tensor);
size_t bytes_of(const DLTensor& tensor);

// A copy of some numbers, in one dimension or in this shape.
Object int32_tensor(const std::vector<int32_t>& values, std::vector<int64_t> shape = {});
Object float_tensor(float value);
Object int64_tensor(int64_t value);

}  // namespace shiftadd::internal
