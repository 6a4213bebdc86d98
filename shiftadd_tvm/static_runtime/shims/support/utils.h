// What the runtime sources use of TVM's helpers for text; TVM's wheel lacks this header.
#ifndef SHIFTADD_SHIM_SUPPORT_UTILS_H_
#define SHIFTADD_SHIM_SUPPORT_UTILS_H_

#include <algorithm>
#include <string>

namespace tvm {
namespace support {

// Whether a text is a whole number in decimal digits, without a sign.
inline bool IsNumber(const std::string& text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return '0' <= c && c <= '9'; });
}

}  // namespace support
}  // namespace tvm

#endif  // SHIFTADD_SHIM_SUPPORT_UTILS_H_
