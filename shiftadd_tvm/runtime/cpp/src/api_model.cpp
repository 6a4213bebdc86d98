// The C ABI: versions, the runtime, models.
#include <algorithm>
#include <cstring>

#include "failure.h"
#include "model.h"
#include "tvm.h"

using namespace shiftadd::internal;

namespace {

template <class T>
T& required(T* pointer, const char* name) {
  if (!pointer) misuse(std::string(name) + " is NULL.");
  return *pointer;
}

}  // namespace

const char* shiftadd_version(void) { return SHIFTADD_VERSION; }

int32_t shiftadd_abi_version(void) { return SHIFTADD_ABI_VERSION; }

const char* shiftadd_status_name(shiftadd_status status) {
  switch (status) {
    case SHIFTADD_OK: return "ok";
    case SHIFTADD_ERROR_INTERNAL: return "internal error";
    case SHIFTADD_ERROR_USAGE: return "usage";
    case SHIFTADD_ERROR_UNSUPPORTED: return "unsupported";
    case SHIFTADD_ERROR_BAD_FILE: return "bad file";
    case SHIFTADD_ERROR_NO_MEMORY: return "no memory";
    case SHIFTADD_CANCELLED: return "cancelled";
  }
  return "unknown status";
}

shiftadd_status shiftadd_load_runtime(const char* runtime_library, const char* ffi_library) {
  return guarded([&] { load_tvm(&required(runtime_library, "runtime_library"), ffi_library ? ffi_library : ""); });
}

shiftadd_model_params shiftadd_model_default_params(void) {
  shiftadd_model_params params = {};
  params.sequences = 4;
  return params;
}

shiftadd_status shiftadd_model_load(const char* path, const shiftadd_model_params* params, shiftadd_model** model) {
  return guarded([&] {
    required(model, "model");
    const shiftadd_model_params chosen = params ? *params : shiftadd_model_default_params();
    const auto reserved = [](int32_t value) { return value != 0; };
    if (std::any_of(std::begin(chosen.reserved), std::end(chosen.reserved), reserved)) {
      misuse("params.reserved is not 0; begin with shiftadd_model_default_params().");
    }
    auto loaded = std::make_shared<Model>(&required(path, "path"), chosen);
    *model = new shiftadd_model{std::move(loaded)};
  });
}

void shiftadd_model_free(shiftadd_model* model) { delete model; }

shiftadd_status shiftadd_model_get_info(const shiftadd_model* model, shiftadd_model_info* info) {
  return guarded([&] {
    const Model& m = checked(model);
    shiftadd_model_info found = {};
    found.kind = m.manifest().kind().c_str();
    found.threads = m.threads();
    found.parameter_bytes = static_cast<int64_t>(checked(const_cast<shiftadd_model*>(model)).artifact().parameter_bytes());
    const Decoder& d = m.decoder();
    found.context = d.context, found.vocabulary = d.vocabulary, found.chunk = d.chunk, found.page = d.page;
    found.bos = m.manifest().is_decoder() ? d.bos : -1;
    found.eos = d.eos.data(), found.eos_count = d.eos.size();
    found.batches = d.batches.data(), found.batch_count = d.batches.size();
    found.free_pages = m.cache_or_null() ? m.cache_or_null()->free_pages() : 0;
    required(info, "info") = found;
  });
}

const char* shiftadd_model_manifest(const shiftadd_model* model, size_t* size) {
  if (!model) return nullptr;
  const std::string_view text = model->model->manifest().text();
  if (size) *size = text.size();
  return text.data();
}

shiftadd_status shiftadd_model_metadata(const shiftadd_model* model, const char* path, char* buffer, size_t capacity,
                                        size_t* size) {
  return guarded([&] {
    const Model& m = checked(model);
    const shiftadd::json::Value value = m.manifest().at(&required(path, "path"));
    if (!value) misuse("The manifest of " + m.manifest().path() + " has no " + quoted(path) + ".");
    const std::string_view text = value.is(shiftadd::json::Kind::kString) ? value.string() : value.source();
    if (capacity > 0) {
      const size_t copied = std::min(capacity - 1, text.size());
      std::memcpy(&required(buffer, "buffer"), text.data(), copied);
      buffer[copied] = 0;
    }
    if (size) *size = text.size();
  });
}

shiftadd_status shiftadd_model_profile(shiftadd_model* model, shiftadd_profile_callback callback, void* user) {
  return guarded([&] {
    Machine& machine = checked(model).machine();
    machine.run([&] { machine.profile(callback, user); });
  });
}

shiftadd_status shiftadd_model_file(const shiftadd_model* model, const char* name, const void** data, size_t* size) {
  return guarded([&] {
    Model& m = checked(const_cast<shiftadd_model*>(model));
    required(data, "data"), required(size, "size");
    const std::string wanted = &required(name, "name");
    if (wanted == kLibrary) misuse(std::string(kLibrary) + " is code; expected a file such as tokenizer.json.");
    const Bytes bytes = m.artifact().file(wanted);
    *data = bytes.data, *size = bytes.size;
  });
}
