// A loaded artifact, as the handles of the C ABI hold it.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "artifact.h"
#include "cache.h"
#include "machine.h"

namespace shiftadd::internal {

class Model {
 public:
  Model(const std::string& path, const shiftadd_model_params& params);

  Artifact& artifact() { return *artifact_; }
  const Manifest& manifest() const { return artifact_->manifest(); }
  const Decoder& decoder() const { return manifest().decoder(); }
  Machine& machine() { return *machine_; }
  Cache& cache() { return *cache_; }
  const Cache* cache_or_null() const { return cache_ ? &*cache_ : nullptr; }
  const Signature& function(const char* name) const;  // Failure usage: there is none
  int threads() const { return machine_->threads(); }
  bool is_eos(int32_t token) const;

  // Failure unsupported unless the artifact is a decoder.
  void require_decoder() const;

  // The signature of a function as the C ABI shows it.
  struct Shown {
    std::vector<shiftadd_tensor> inputs, outputs;
  };
  const Shown& shown(const Signature& function) const;

 private:
  std::shared_ptr<Artifact> artifact_;
  std::unique_ptr<Machine> machine_;
  std::optional<Cache> cache_;
  std::vector<Shown> shown_;
};

// The handle behind `model`; Failure usage for NULL.
Model& checked(shiftadd_model* model);
const Model& checked(const shiftadd_model* model);

}  // namespace shiftadd::internal

struct shiftadd_model {
  std::shared_ptr<shiftadd::internal::Model> model;
};
