// Where an artifact and its compiled functions come from: a folder, and the shared library in it. A single
// library has another file in place of this one (sdk/linked/linked.cpp).
#include "machine.h"

namespace shiftadd::internal {

std::unique_ptr<Files> open_files(const std::string& path) { return open_path(path); }

Object open_module(const Artifact& artifact) {
  return call(global_function("ffi.ModuleLoadFromFile"), {artifact.library_path()});
}

}  // namespace shiftadd::internal
