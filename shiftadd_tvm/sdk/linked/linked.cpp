// Where a single library has its artifact: the compiled functions and the small files are linked in. What
// is not (the parameters, mostly) lies in the folder that shiftadd_model_load() is given.
#include "linked.h"

#include <tvm/ffi/extra/c_env_api.h>

#include <algorithm>
#include <mutex>

#include "src/failure.h"
#include "src/files.h"
#include "src/machine.h"

namespace shiftadd::internal {
namespace {

class LinkedFiles : public Files {
 public:
  explicit LinkedFiles(std::string path) : path_(std::move(path)) {
    if (!path_.empty()) folder_ = open_path(path_);
  }

  const std::string& path() const override { return path_.empty() ? linked_ : path_; }

  Bytes map(const std::string& name) const override {
    const shiftadd_linked_file* end = shiftadd_linked_files + shiftadd_linked_file_count;
    const auto found = std::find_if(shiftadd_linked_files, end, [&](const auto& file) { return name == file.name; });
    if (found != end) {
      const auto* begin = static_cast<const unsigned char*>(found->begin);
      return {nullptr, begin, static_cast<size_t>(static_cast<const unsigned char*>(found->end) - begin)};
    }
    if (folder_) return folder_->map(name);
    fail(SHIFTADD_ERROR_BAD_FILE,
         quoted(name) + " is not linked into this library; give the folder where it lies instead of an empty path.");
  }

  std::string library_path(const std::string& name) const override { return path() + "/" + name; }

 private:
  std::string path_, linked_ = "the linked artifact";
  std::unique_ptr<Files> folder_;
};

}  // namespace

std::unique_ptr<Files> open_files(const std::string& path) { return std::make_unique<LinkedFiles>(path); }

Object open_module(const Artifact&) {
  static std::once_flag registered;
  std::call_once(registered, [] {
    for (size_t i = 0; i < shiftadd_linked_symbol_count; ++i) {
      const shiftadd_linked_symbol& symbol = shiftadd_linked_symbols[i];
      TVMFFIEnvModRegisterSystemLibSymbol(symbol.name, symbol.address);
    }
  });
  return call(global_function("ffi.SystemLib"), {});
}

}  // namespace shiftadd::internal
