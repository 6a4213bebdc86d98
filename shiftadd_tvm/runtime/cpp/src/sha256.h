// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <string>

namespace shiftadd::internal {

// The digest of `size` bytes, as 64 lower-case hex digits.
std::string sha256(const void* data, size_t size);

}  // namespace shiftadd::internal
