// The GPU of this machine, as its CUDA driver tells of it.
#pragma once

#include <string>

namespace shiftadd::internal {

// What this machine lacks to run machine code for an architecture such as "sm_90", in words; "": nothing.
std::string gpu_lacks(const std::string& architecture);

}  // namespace shiftadd::internal
