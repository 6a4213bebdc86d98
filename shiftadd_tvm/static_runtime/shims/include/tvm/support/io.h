// Byte streams, as the runtime sources in TVM's wheel use them; the wheel lacks this header.
//
// Everything is written little-endian: numbers as their bytes, a length as 64 bits before what it
// counts. A value of another type goes through a `Serializer` of its own (serializer.h has them).
#ifndef SHIFTADD_SHIM_TVM_SUPPORT_IO_H_
#define SHIFTADD_SHIM_TVM_SUPPORT_IO_H_

#include <tvm/ffi/endian.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace tvm {
namespace support {

class Stream;

// How a T is written to a stream and read back; `Read` returns false where the bytes end too early.
template <typename T, typename Enable = void>
struct Serializer;

class Stream {
 public:
  virtual ~Stream() = default;
  // Copy up to `size` bytes; return how many there were.
  virtual size_t Read(void* destination, size_t size) = 0;
  virtual size_t Write(const void* source, size_t size) = 0;

  template <typename T>
  void Write(const T& value) {
    Serializer<T>::Write(this, value);
  }

  template <typename T>
  bool Read(T* value) {
    return Serializer<T>::Read(this, value);
  }

  template <typename T>
  void WriteArray(const T* values, size_t count) {
    for (size_t i = 0; i < count; ++i) Serializer<T>::Write(this, values[i]);
  }

  template <typename T>
  bool ReadArray(T* values, size_t count) {
    if constexpr (std::is_arithmetic_v<T> && TVM_FFI_IO_NO_ENDIAN_SWAP) {
      return Read(static_cast<void*>(values), count * sizeof(T)) == count * sizeof(T);
    }
    for (size_t i = 0; i < count; ++i) {
      if (!Serializer<T>::Read(this, &values[i])) return false;
    }
    return true;
  }
};

}  // namespace support
}  // namespace tvm

#include <tvm/support/serializer.h>

#endif  // SHIFTADD_SHIM_TVM_SUPPORT_IO_H_
