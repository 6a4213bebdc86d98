#include "memory.h"

#include <cstring>

#include "artifact.h"
#include "failure.h"

namespace shiftadd::internal {
namespace {

bool lies_on(const Object& tensor, DLDevice device) { return tensor.tensor().device.device_type == device.device_type; }

// Call a function that has to do with a GPU.
Object ask(const char* function, const std::vector<Argument>& arguments) {
  try {
    return call(global_function(function), arguments);
  } catch (const TvmError& error) {
    const bool full = error.message.find("out of memory") != std::string::npos;
    fail(full ? SHIFTADD_ERROR_NO_MEMORY : SHIFTADD_ERROR_INTERNAL,
         "The GPU failed: " + error.message + (full ? "; load a smaller model, or fewer sequences." : "."));
  }
}

// Memory of a device, as it comes.
Object allocate(DLDevice device, const ElementType& type, const std::vector<int64_t>& shape) {
  const Object sizes = ask("ffi.Shape", {shape.begin(), shape.end()});
  return ask("runtime.TVMTensorAllocWithScope", {sizes, Argument(type.dlpack), Argument(device), Argument::none()});
}

// Bytes of a tensor as a tensor of their own.
Object window(const Object& tensor, size_t begin, size_t bytes) {
  const char* data = begin_of(tensor.tensor()) + begin;
  const std::vector<int64_t> shape = {static_cast<int64_t>(bytes)};
  return view_tensor(std::make_shared<Object>(tensor), data, *element_type(SHIFTADD_UINT8), shape, tensor.tensor().device, 1);
}

}  // namespace

Object Memory::zeros(const ElementType& type, const std::vector<int64_t>& shape) const {
  return upload(reserved_tensor(type, shape));  // pages that are only read take no memory
}

Object Memory::upload(const Object& tensor) const {
  if (is_host() || lies_on(tensor, device_)) return tensor;
  const DLTensor& d = tensor.tensor();
  const Object copy = allocate(device_, *element_type(d.dtype), shape_of(d));
  write(copy, begin_of(d), bytes_of(d));
  return copy;
}

Object Memory::download(const Object& tensor) const {
  if (lies_on(tensor, kHost)) return tensor;
  const DLTensor& d = tensor.tensor();
  const Object copy = copied_tensor(nullptr, *element_type(d.dtype), shape_of(d));
  const auto bytes = static_cast<int64_t>(bytes_of(d));
  if (bytes > 0) ask("runtime.TVMTensorCopyToBytes", {tensor, Argument::pointer(copy.tensor().data), bytes});
  return copy;
}

void Memory::write(const Object& to, const void* data, size_t bytes) const {
  if (bytes == 0) return;
  ask("runtime.TVMTensorCopyFromBytes", {to, Argument::pointer(const_cast<void*>(data)), static_cast<int64_t>(bytes)});
}

Object Memory::rows(const Object& tensor, size_t begin, size_t count) const {
  const DLTensor& d = tensor.tensor();
  const ElementType& type = *element_type(d.dtype);
  const std::vector<int64_t> shape = {static_cast<int64_t>(count), d.shape[1]};
  const size_t width = static_cast<size_t>(d.shape[1]) * type.bytes;
  const char* data = begin_of(d) + begin * width;
  const auto view = [&](size_t alignment) {
    return view_tensor(std::make_shared<Object>(tensor), data, type, shape, d.device, alignment);
  };
  if (reinterpret_cast<uintptr_t>(data) % kAlignment == 0) return view(kAlignment);
  return lies_on(tensor, kHost) ? copied_tensor(data, type, shape) : download(view(type.bytes));
}

void Memory::copy_within(const Object& tensor, size_t to, size_t from, size_t bytes) const {
  if (is_host()) {
    char* data = static_cast<char*>(tensor.tensor().data);
    std::memcpy(data + to, data + from, bytes);
    return;
  }
  ask("runtime.TVMTensorCopyFromTo", {window(tensor, from, bytes), window(tensor, to, bytes)});
}

}  // namespace shiftadd::internal
