#include "artifact.h"

#include "failure.h"
#include "safetensors.h"
#include "sha256.h"

namespace shiftadd::internal {
namespace {

constexpr size_t kSmallFile = 64 << 20;  // files up to this size are hashed at load

// model.so is hashed whatever its size: it is about to be run.
bool hashed_at_load(const std::string& name, size_t bytes) {
  return name == kLibrary || (bytes <= kSmallFile && name != kParameters && name != kGolden);
}

}  // namespace

Artifact::Artifact(std::unique_ptr<Files> files, bool check_hashes)
    : files_(std::move(files)), manifest_(*files_) {
  check_files(check_hashes);
  find_parameters();
  manifest_.check_machine();
}

void Artifact::check_files(bool check_hashes) const {
  for (const auto& [name, record] : manifest_.files()) {
    const Bytes bytes = files_->map(name);
    if (bytes.size != record.bytes) {
      manifest_.bad(quoted(name) + " has " + std::to_string(bytes.size) + " bytes, expected " + std::to_string(record.bytes));
    }
    if (!check_hashes && !hashed_at_load(name, bytes.size)) continue;
    const std::string found = sha256(bytes.data, bytes.size);
    if (found != record.sha256) {
      manifest_.bad(quoted(name) + " has sha256 " + found.substr(0, 12) + "…, expected " + record.sha256.substr(0, 12) + "…");
    }
  }
}

void Artifact::find_parameters() {
  mapped_ = files_->map(kParameters);
  const auto stored = read_safetensors(mapped_, manifest_.path() + "/" + kParameters);
  for (const TensorSpec& spec : manifest_.parameters()) {
    const std::string name = "parameter " + quoted(spec.name);
    const auto found = stored.find(spec.name);
    if (found == stored.end() || found->second.dtype != "U8") {
      manifest_.bad(std::string(kParameters) + " holds no U8 tensor " + quoted(spec.name));
    }
    size_t bytes = spec.type->bytes;
    for (const int64_t size : spec.shape) bytes *= static_cast<size_t>(size);
    const size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    const StoredTensor& tensor = found->second;
    if (tensor.shape.size() != 1 || tensor.bytes != padded) {
      manifest_.bad(name + " has " + std::to_string(tensor.bytes) + " stored bytes, expected " + std::to_string(padded));
    }
    if (reinterpret_cast<uintptr_t>(tensor.data) % kAlignment != 0) {
      manifest_.bad(name + " does not begin at a multiple of " + std::to_string(kAlignment) + " bytes");
    }
    parameters_.push_back(tensor.data);
  }
}

Bytes Artifact::file(const std::string& name) {
  if (!manifest_.files().count(name)) misuse("The artifact " + manifest_.path() + " has no file " + quoted(name) + ".");
  const std::lock_guard<std::mutex> lock(mutex_);
  auto place = opened_.find(name);
  if (place == opened_.end()) place = opened_.emplace(name, files_->map(name)).first;
  return place->second;
}

}  // namespace shiftadd::internal
