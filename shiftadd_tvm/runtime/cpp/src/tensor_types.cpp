#include "tensor_types.h"

namespace shiftadd::internal {
namespace {

constexpr DLDataType described(uint8_t code, uint8_t bits) { return {code, bits, 1}; }

constexpr ElementType kTypes[] = {
    {SHIFTADD_FLOAT32, "float32", described(kDLFloat, 32), 4},
    {SHIFTADD_FLOAT16, "float16", described(kDLFloat, 16), 2},
    {SHIFTADD_INT8, "int8", described(kDLInt, 8), 1},
    {SHIFTADD_INT16, "int16", described(kDLInt, 16), 2},
    {SHIFTADD_INT32, "int32", described(kDLInt, 32), 4},
    {SHIFTADD_INT64, "int64", described(kDLInt, 64), 8},
    {SHIFTADD_UINT8, "uint8", described(kDLUInt, 8), 1},
    {SHIFTADD_UINT16, "uint16", described(kDLUInt, 16), 2},
    {SHIFTADD_UINT32, "uint32", described(kDLUInt, 32), 4},
    {SHIFTADD_UINT64, "uint64", described(kDLUInt, 64), 8},
    {SHIFTADD_BOOL, "bool", described(kDLBool, 8), 1},
    {SHIFTADD_FLOAT64, "float64", described(kDLFloat, 64), 8},
};

template <class Fits>
const ElementType* first(Fits fits) {
  for (const ElementType& type : kTypes) {
    if (fits(type)) return &type;
  }
  return nullptr;
}

}  // namespace

const ElementType* element_type(std::string_view name) {
  return first([&](const ElementType& type) { return type.name == name; });
}

const ElementType* element_type(int32_t dtype) {
  return first([&](const ElementType& type) { return type.dtype == dtype; });
}

const ElementType* element_type(DLDataType d) {
  return first([&](const ElementType& type) {
    return type.dlpack.code == d.code && type.dlpack.bits == d.bits && type.dlpack.lanes == d.lanes;
  });
}

}  // namespace shiftadd::internal
