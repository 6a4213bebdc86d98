// Streams over bytes in memory; TVM's wheel lacks this header.
#ifndef SHIFTADD_SHIM_SUPPORT_BYTES_IO_H_
#define SHIFTADD_SHIM_SUPPORT_BYTES_IO_H_

#include <tvm/ffi/string.h>
#include <tvm/support/io.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace tvm {
namespace support {

class BytesInStream final : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  // The bytes must outlive the stream.
  explicit BytesInStream(const std::string& bytes) : next_(bytes.data()), left_(bytes.size()) {}
  explicit BytesInStream(const ffi::Bytes& bytes) : next_(bytes.data()), left_(bytes.size()) {}

  size_t Read(void* destination, size_t size) final {
    const size_t count = std::min(size, left_);
    if (count != 0) std::memcpy(destination, next_, count);
    next_ += count;
    left_ -= count;
    return count;
  }
  size_t Write(const void*, size_t) final { return 0; }  // only to be read from

 private:
  const char* next_;
  size_t left_;
};

class BytesOutStream final : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  // Append to `*bytes`, which must outlive the stream.
  explicit BytesOutStream(std::string* bytes) : bytes_(bytes) {}

  size_t Read(void*, size_t) final { return 0; }  // only to be written to
  size_t Write(const void* source, size_t size) final {
    bytes_->append(static_cast<const char*>(source), size);
    return size;
  }

 private:
  std::string* bytes_;
};

}  // namespace support
}  // namespace tvm

#endif  // SHIFTADD_SHIM_SUPPORT_BYTES_IO_H_
