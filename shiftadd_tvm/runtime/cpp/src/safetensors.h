// A safetensors file: a header of JSON, then the bytes of its tensors without gaps.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "files.h"

namespace shiftadd::internal {

// One tensor as the header describes it.
struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  const unsigned char* data;
  size_t bytes;
};

// Read and check the header whole. Failure bad file; `path` is what sentences call the file.
std::unordered_map<std::string, StoredTensor> read_safetensors(const Bytes& file, const std::string& path);

}  // namespace shiftadd::internal
