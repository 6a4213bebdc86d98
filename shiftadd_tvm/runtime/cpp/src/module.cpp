// Where the compiled functions come from: a shared library of the artifact.
#include "machine.h"

namespace shiftadd::internal {

Object open_module(const Artifact& artifact) {
  return call(global_function("ffi.ModuleLoadFromFile"), {artifact.library_path()});
}

}  // namespace shiftadd::internal
