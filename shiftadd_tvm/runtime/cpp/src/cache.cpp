#include "cache.h"

#include "failure.h"
#include "tensors.h"

namespace shiftadd::internal {

Cache::Cache(const Signature& function, const Decoder& decoder, int32_t sequences, const Memory& memory)
    : memory_(memory) {
  const int64_t width = (int64_t{decoder.context} + decoder.page - 1) / decoder.page;
  if (width * sequences > INT32_MAX) {
    misuse("A cache of " + std::to_string(sequences) + " sequences has too many pages; load the model with fewer.");
  }
  pages_ = static_cast<int32_t>(width * sequences);
  for (const TensorSpec& input : function.inputs) {
    const int axis = input.axis("pages");
    if (axis < 0) continue;
    std::vector<int64_t> shape = input.shape;
    shape[axis] = pages_;
    const std::vector<int64_t> before(shape.begin(), shape.begin() + axis), after(shape.begin() + axis + 1, shape.end());
    const size_t parts = tensor_bytes(*input.type, before) / input.type->bytes;
    tensors_.push_back({input.name, memory_.zeros(*input.type, shape), parts, tensor_bytes(*input.type, after)});
  }
}

int32_t Cache::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!returned_.empty()) {
    const int32_t page = returned_.back();
    returned_.pop_back();
    holders_[page] = 1;
    return page;
  }
  if (static_cast<int32_t>(holders_.size()) == pages_) {
    fail(SHIFTADD_ERROR_NO_MEMORY,
         "The cache has no free page; free or reset a session, or load the model for more sequences.");
  }
  holders_.push_back(1);
  returned_.reserve(holders_.size());  // so that release() never allocates
  return static_cast<int32_t>(holders_.size()) - 1;
}

int32_t Cache::copy(int32_t page) {
  const int32_t own = take();
  for (const Tensor& cached : tensors_) {
    for (size_t i = 0; i < cached.parts; ++i) {
      const size_t part = i * cached.bytes * pages_;
      memory_.copy_within(cached.tensor, part + cached.bytes * own, part + cached.bytes * page, cached.bytes);
    }
  }
  return own;
}

void Cache::share(int32_t page) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++holders_[page];
}

void Cache::release(int32_t page) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--holders_[page] == 0) returned_.push_back(page);
}

bool Cache::is_shared(int32_t page) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return holders_[page] > 1;
}

int32_t Cache::free_pages() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return pages_ - static_cast<int32_t>(holders_.size() - returned_.size());
}

}  // namespace shiftadd::internal
