// Streams in base 64 over another stream, by the coder of tvm_ffi; TVM's wheel lacks this header.
#ifndef SHIFTADD_SHIM_SUPPORT_BASE64_H_
#define SHIFTADD_SHIM_SUPPORT_BASE64_H_

#include <tvm/ffi/extra/base64.h>
#include <tvm/support/io.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace tvm {
namespace support {

class Base64OutStream final : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit Base64OutStream(Stream* target) : target_(target) {}

  size_t Read(void*, size_t) final { return 0; }  // only to be written to
  size_t Write(const void* source, size_t size) final {
    bytes_.append(static_cast<const char*>(source), size);
    return size;
  }
  // Code what was written; nothing reaches the target before.
  void Finish() {
    const ffi::String text = ffi::Base64Encode(TVMFFIByteArray{bytes_.data(), bytes_.size()});
    target_->Write(static_cast<const void*>(text.data()), text.size());
    bytes_.clear();
  }

 private:
  Stream* target_;
  std::string bytes_;
};

class Base64InStream final : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit Base64InStream(Stream* source) : source_(source) {}

  // Read the source to its end and decode it; must come before the first `Read`.
  void InitPosition() {
    char piece[4096];
    std::string text;
    while (const size_t count = source_->Read(static_cast<void*>(piece), sizeof(piece))) {
      text.append(piece, count);
    }
    const ffi::Bytes decoded = ffi::Base64Decode(TVMFFIByteArray{text.data(), text.size()});
    bytes_.assign(decoded.data(), decoded.size());
    next_ = 0;
  }
  size_t Read(void* destination, size_t size) final {
    const size_t count = std::min(size, bytes_.size() - next_);
    if (count != 0) std::memcpy(destination, bytes_.data() + next_, count);
    next_ += count;
    return count;
  }
  size_t Write(const void*, size_t) final { return 0; }  // only to be read from

 private:
  Stream* source_;
  std::string bytes_;
  size_t next_ = 0;
};

}  // namespace support
}  // namespace tvm

#endif  // SHIFTADD_SHIM_SUPPORT_BASE64_H_
