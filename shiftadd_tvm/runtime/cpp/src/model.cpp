#include "model.h"

#include <algorithm>

#include "failure.h"
#include "processor.h"

namespace shiftadd::internal {
namespace {

constexpr int32_t kMaxThreads = 1024;
constexpr int32_t kMaxSequences = 1 << 16;

void check_range(const char* name, int32_t value, int32_t least, int32_t most) {
  if (value < least || value > most) {
    misuse(std::string(name) + " is " + std::to_string(value) + ", expected " + std::to_string(least) + " to " +
           std::to_string(most) + ".");
  }
}

shiftadd_tensor shown_tensor(const TensorSpec& spec) {
  return {spec.name.c_str(), spec.type->dtype, static_cast<int32_t>(spec.shape.size()), spec.shape.data(), nullptr};
}

}  // namespace

Model::Model(const std::string& path, const shiftadd_model_params& params) {
  check_range("threads", params.threads, 0, kMaxThreads);
  check_range("sequences", params.sequences, 1, kMaxSequences);
  check_range("load", params.load, SHIFTADD_LOAD_AS_COMPILED, SHIFTADD_LOAD_HUGEPAGES);
  const auto load = static_cast<shiftadd_load>(params.load);
  artifact_ = std::make_shared<Artifact>(open_files(path), params.check_hashes != 0, load);
  machine_ = std::make_unique<Machine>(artifact_, params.threads ? params.threads : usable_processors());
  if (manifest().is_decoder()) cache_.emplace(function("decode_b1"), decoder(), params.sequences, machine_->memory());
  for (const Signature& signature : manifest().functions()) {
    Shown& one = shown_.emplace_back();
    std::transform(signature.inputs.begin(), signature.inputs.end(), std::back_inserter(one.inputs), shown_tensor);
    std::transform(signature.outputs.begin(), signature.outputs.end(), std::back_inserter(one.outputs), shown_tensor);
  }
}

const Signature& Model::function(const char* name) const {
  const Signature* found = name ? manifest().function(name) : nullptr;
  if (!found) misuse(manifest().path() + " has no function " + quoted(name ? name : "NULL") + ".");
  return *found;
}

const Model::Shown& Model::shown(const Signature& function) const {
  return shown_[&function - manifest().functions().data()];
}

bool Model::is_eos(int32_t token) const {
  const std::vector<int32_t>& eos = decoder().eos;
  return std::find(eos.begin(), eos.end(), token) != eos.end();
}

void Model::require_decoder() const {
  if (!manifest().is_decoder()) {
    fail(SHIFTADD_ERROR_UNSUPPORTED, manifest().path() + " is not a decoder; it cannot generate text.");
  }
}

Model& checked(shiftadd_model* model) {
  if (!model) misuse("The model is NULL; expected one that shiftadd_model_load gave.");
  return *model->model;
}

const Model& checked(const shiftadd_model* model) { return checked(const_cast<shiftadd_model*>(model)); }

}  // namespace shiftadd::internal
