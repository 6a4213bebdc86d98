// Marks a range for NVIDIA's profiler where that is built in; the static runtime has none.
#ifndef SHIFTADD_SHIM_TVM_SUPPORT_CUDA_NVTX_H_
#define SHIFTADD_SHIM_TVM_SUPPORT_CUDA_NVTX_H_

#include <string>

namespace tvm {
namespace support {

class NVTXScopedRange {
 public:
  explicit NVTXScopedRange(const std::string&) {}
  NVTXScopedRange(const NVTXScopedRange&) = delete;
  NVTXScopedRange& operator=(const NVTXScopedRange&) = delete;
};

}  // namespace support
}  // namespace tvm

#endif  // SHIFTADD_SHIM_TVM_SUPPORT_CUDA_NVTX_H_
