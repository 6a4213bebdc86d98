// The element types of tensors: their names in manifests, their sizes, DLPack's description.
#pragma once

#include <cstddef>
#include <string_view>

#include <dlpack/dlpack.h>

#include "shiftadd/shiftadd.h"

namespace shiftadd::internal {

struct ElementType {
  shiftadd_dtype dtype;
  std::string_view name;
  DLDataType dlpack;
  size_t bytes;
};

// The type of that name, or nullptr.
const ElementType* element_type(std::string_view name);
// The type of that number (a shiftadd_dtype), or nullptr.
const ElementType* element_type(int32_t dtype);
// The type that DLPack describes, or nullptr.
const ElementType* element_type(DLDataType dlpack);

}  // namespace shiftadd::internal
