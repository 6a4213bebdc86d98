// How each type that the runtime stores is written; see io.h. A length is checked by reading piece by
// piece: a damaged one ends the reading before it can ask for more memory than there are bytes.
#ifndef SHIFTADD_SHIM_TVM_SUPPORT_SERIALIZER_H_
#define SHIFTADD_SHIM_TVM_SUPPORT_SERIALIZER_H_

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/string.h>
#include <tvm/support/io.h>

#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace tvm {
namespace support {

template <typename T>
struct Serializer<T, std::enable_if_t<std::is_arithmetic_v<T> || std::is_enum_v<T>>> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, T value) {
    if (!TVM_FFI_IO_NO_ENDIAN_SWAP) ffi::ByteSwap(&value, sizeof(T), 1);
    stream->Write(static_cast<const void*>(&value), sizeof(T));
  }
  static bool Read(Stream* stream, T* value) {
    if (stream->Read(static_cast<void*>(value), sizeof(T)) != sizeof(T)) return false;
    if (!TVM_FFI_IO_NO_ENDIAN_SWAP) ffi::ByteSwap(value, sizeof(T), 1);
    return true;
  }
};

template <typename T>
struct Serializer<std::vector<T>> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const std::vector<T>& values) {
    Serializer<uint64_t>::Write(stream, values.size());
    stream->WriteArray(values.data(), values.size());
  }
  static bool Read(Stream* stream, std::vector<T>* values) {
    constexpr uint64_t kPiece = 4096;
    uint64_t left = 0;
    if (!Serializer<uint64_t>::Read(stream, &left)) return false;
    for (values->clear(); left > 0;) {
      const size_t begin = values->size(), count = std::min(left, kPiece);
      values->resize(begin + count);
      if (!stream->ReadArray(values->data() + begin, count)) return false;
      left -= count;
    }
    return true;
  }
};

template <>
struct Serializer<std::string> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const std::string& text) {
    Serializer<uint64_t>::Write(stream, text.size());
    stream->Write(static_cast<const void*>(text.data()), text.size());
  }
  static bool Read(Stream* stream, std::string* text) {
    std::vector<char> bytes;
    if (!Serializer<std::vector<char>>::Read(stream, &bytes)) return false;
    text->assign(bytes.begin(), bytes.end());
    return true;
  }
};

template <>
struct Serializer<ffi::String> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const ffi::String& text) {
    Serializer<std::string>::Write(stream, text);
  }
  static bool Read(Stream* stream, ffi::String* text) {
    std::string read;
    if (!Serializer<std::string>::Read(stream, &read)) return false;
    *text = ffi::String(std::move(read));
    return true;
  }
};

template <typename First, typename Second>
struct Serializer<std::pair<First, Second>> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const std::pair<First, Second>& value) {
    Serializer<First>::Write(stream, value.first);
    Serializer<Second>::Write(stream, value.second);
  }
  static bool Read(Stream* stream, std::pair<First, Second>* value) {
    return Serializer<First>::Read(stream, &value->first) &&
           Serializer<Second>::Read(stream, &value->second);
  }
};

template <typename T>
struct Serializer<ffi::Array<T>> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const ffi::Array<T>& values) {
    Serializer<uint64_t>::Write(stream, values.size());
    for (const T& value : values) Serializer<T>::Write(stream, value);
  }
  static bool Read(Stream* stream, ffi::Array<T>* values) {
    std::vector<T> read;
    if (!Serializer<std::vector<T>>::Read(stream, &read)) return false;
    *values = ffi::Array<T>(read.begin(), read.end());
    return true;
  }
};

template <>
struct Serializer<DLDataType> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const DLDataType& type) {
    Serializer<uint8_t>::Write(stream, type.code);
    Serializer<uint8_t>::Write(stream, type.bits);
    Serializer<uint16_t>::Write(stream, type.lanes);
  }
  static bool Read(Stream* stream, DLDataType* type) {
    return Serializer<uint8_t>::Read(stream, &type->code) &&
           Serializer<uint8_t>::Read(stream, &type->bits) &&
           Serializer<uint16_t>::Read(stream, &type->lanes);
  }
};

template <>
struct Serializer<DLDevice> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const DLDevice& device) {
    Serializer<int32_t>::Write(stream, static_cast<int32_t>(device.device_type));
    Serializer<int32_t>::Write(stream, device.device_id);
  }
  static bool Read(Stream* stream, DLDevice* device) {
    int32_t kind = 0;
    if (!Serializer<int32_t>::Read(stream, &kind)) return false;
    device->device_type = static_cast<DLDeviceType>(kind);
    return Serializer<int32_t>::Read(stream, &device->device_id);
  }
};

}  // namespace support
}  // namespace tvm

#endif  // SHIFTADD_SHIM_TVM_SUPPORT_SERIALIZER_H_
