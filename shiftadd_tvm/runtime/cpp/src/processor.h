// What the processor is, by the names that Linux uses: an artifact's kernels must not run on another.
#pragma once

#include <string>
#include <string_view>

namespace shiftadd::internal {

// Such as "x86_64" or "aarch64".
std::string_view machine();

// Tell whether the processor, and the system, have a feature such as "avx2" or "asimddp".
bool has_feature(std::string_view name);

// How many processors this process may run on, at least 1.
int usable_processors();

}  // namespace shiftadd::internal
