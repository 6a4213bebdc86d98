#include "tensors.h"

#include <sys/mman.h>

#include <cstdlib>

#include "artifact.h"
#include "failure.h"

namespace shiftadd::internal {
namespace {

// What DLPack hands over: the tensor, its sizes, and the memory's owner.
struct Holder {
  DLManagedTensor managed = {};
  std::vector<int64_t> shape;
  std::shared_ptr<const void> owner;
};

void release(DLManagedTensor* managed) { delete static_cast<Holder*>(managed->manager_ctx); }

}  // namespace

size_t tensor_bytes(const ElementType& type, const std::vector<int64_t>& shape) {
  size_t bytes = type.bytes;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) throw std::bad_alloc();
  }
  return bytes;
}

const char* begin_of(const DLTensor& tensor) { return static_cast<const char*>(tensor.data) + tensor.byte_offset; }

std::vector<int64_t> shape_of(const DLTensor& tensor) { return {tensor.shape, tensor.shape + tensor.ndim}; }

size_t bytes_of(const DLTensor& tensor) { return tensor_bytes(*element_type(tensor.dtype), shape_of(tensor)); }

Object view_tensor(std::shared_ptr<const void> owner, const void* data, const ElementType& type,
                   const std::vector<int64_t>& shape, DLDevice device, size_t alignment) {
  auto holder = std::make_unique<Holder>();
  holder->shape = shape;
  holder->owner = std::move(owner);
  holder->managed.manager_ctx = holder.get();
  holder->managed.deleter = release;
  DLTensor& tensor = holder->managed.dl_tensor;
  tensor.data = const_cast<void*>(data);  // parameters are mapped read-only: no kernel writes them
  tensor.device = device;
  tensor.ndim = static_cast<int32_t>(holder->shape.size());
  tensor.dtype = type.dlpack;
  tensor.shape = holder->shape.data();
  TVMFFIObjectHandle handle = nullptr;
  if (tvm().tensor_from_dlpack(&holder->managed, static_cast<int32_t>(alignment), 1, &handle) != 0) {
    fail(SHIFTADD_ERROR_INTERNAL, "TVM refuses a tensor; please report it.");
  }
  holder.release();  // the tensor's from here on
  return Object(handle);
}

Object reserved_tensor(const ElementType& type, const std::vector<int64_t>& shape) {
  const size_t bytes = std::max<size_t>(tensor_bytes(type, shape), 1);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    fail(SHIFTADD_ERROR_NO_MEMORY, "The cache needs " + std::to_string(bytes) +
                                       " bytes of address space, which there are not; load the model with fewer "
                                       "sequences, or compile it with a smaller --context.");
  }
  std::shared_ptr<const void> owner(data, [bytes](const void* p) { munmap(const_cast<void*>(p), bytes); });
  return view_tensor(std::move(owner), data, type, shape);
}

Object copied_tensor(const void* data, const ElementType& type, const std::vector<int64_t>& shape) {
  const size_t bytes = tensor_bytes(type, shape);
  const size_t padded = (bytes + kAlignment) / kAlignment * kAlignment;  // never 0
  std::shared_ptr<void> owner(std::aligned_alloc(kAlignment, padded), std::free);
  if (!owner) throw std::bad_alloc();
  if (data && bytes > 0) std::memcpy(owner.get(), data, bytes);
  return view_tensor(owner, owner.get(), type, shape);
}

Object int32_tensor(const std::vector<int32_t>& values, std::vector<int64_t> shape) {
  if (shape.empty()) shape = {static_cast<int64_t>(values.size())};
  return copied_tensor(values.data(), *element_type(SHIFTADD_INT32), shape);
}

Object float_tensor(float value) { return copied_tensor(&value, *element_type(SHIFTADD_FLOAT32), {1}); }

Object int64_tensor(int64_t value) { return copied_tensor(&value, *element_type(SHIFTADD_INT64), {1}); }

}  // namespace shiftadd::internal
