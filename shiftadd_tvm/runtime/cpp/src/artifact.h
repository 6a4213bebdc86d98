// Contract 2, the artifact: its files against its manifest, its parameters in memory.
#pragma once

#include <shiftadd/shiftadd.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "files.h"
#include "manifest.h"

namespace shiftadd::internal {

inline constexpr size_t kAlignment = 64;  // bytes: kernels use aligned vector loads

class Artifact {
 public:
  // Check everything but the hashes of large files (with `check_hashes`, those too), and the machine.
  Artifact(std::unique_ptr<Files> files, bool check_hashes, shiftadd_load load);

  const Manifest& manifest() const { return manifest_; }
  std::string library_path() const { return files_->library_path(kLibrary); }

  // Where the parameters lie, in the manifest's order; valid as long as the artifact.
  const std::vector<const unsigned char*>& parameters() const { return parameters_; }
  size_t parameter_bytes() const { return stored_.size; }

  // A file that is no code; mapped once, for as long as the artifact lives. Failure usage: no such file.
  Bytes file(const std::string& name);

 private:
  void check_files(bool check_hashes) const;
  bool wants_huge_pages(shiftadd_load load) const;
  void find_parameters(bool huge_pages);

  std::unique_ptr<Files> files_;
  Manifest manifest_;
  Bytes stored_;  // the file of parameters: mapped, or its copy
  std::vector<const unsigned char*> parameters_;
  std::mutex mutex_;  // of opened_
  std::map<std::string, Bytes> opened_;
};

}  // namespace shiftadd::internal
