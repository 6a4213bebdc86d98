#include "artifact.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "failure.h"
#include "safetensors.h"
#include "sha256.h"

namespace shiftadd::internal {
namespace {

constexpr size_t kHugePage = 2 << 20;
constexpr size_t kSmallFile = 64 << 20;  // files up to this size are hashed at load

// model.so is hashed whatever its size: it is about to be run.
bool hashed_at_load(const std::string& name, size_t bytes) {
  return name == kLibrary || (bytes <= kSmallFile && name != kParameters && name != kGolden);
}

// A copy that begins at a huge page; where Linux gives none, ordinary pages serve as well.
Bytes on_huge_pages(const Bytes& bytes) {
  const size_t size = (bytes.size + kHugePage - 1) / kHugePage * kHugePage;
  std::shared_ptr<void> owner(std::aligned_alloc(kHugePage, size), std::free);
  if (!owner) throw std::bad_alloc();
  madvise(owner.get(), size, MADV_HUGEPAGE);
  std::memcpy(owner.get(), bytes.data, bytes.size);
  return {owner, static_cast<const unsigned char*>(owner.get()), bytes.size};
}

}  // namespace

Artifact::Artifact(std::unique_ptr<Files> files, bool check_hashes, shiftadd_load load)
    : files_(std::move(files)), manifest_(*files_) {
  check_files(check_hashes);
  find_parameters(wants_huge_pages(load));
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

bool Artifact::wants_huge_pages(shiftadd_load load) const {
  if (!manifest_.device().empty()) return false;  // the GPU has a copy of its own
  return load == SHIFTADD_LOAD_AS_COMPILED ? manifest_.huge_pages() : load == SHIFTADD_LOAD_HUGEPAGES;
}

void Artifact::find_parameters(bool huge_pages) {
  stored_ = files_->map(kParameters);
  if (huge_pages) stored_ = on_huge_pages(stored_);
  const auto stored = read_safetensors(stored_, manifest_.path() + "/" + kParameters);
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
