// What a function gave, as the handle of the C ABI holds it.
#pragma once

#include <memory>
#include <vector>

#include "model.h"

struct shiftadd_result {
  std::shared_ptr<shiftadd::internal::Model> model;  // the signature is its
  const shiftadd::internal::Signature& function;
  std::vector<shiftadd::internal::Object> tensors;  // its outputs
};
