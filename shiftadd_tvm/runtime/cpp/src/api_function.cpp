// The C ABI: functions that are called by name, with named tensors.
#include <algorithm>
#include <map>

#include "failure.h"
#include "result.h"
#include "tensors.h"

using namespace shiftadd::internal;

namespace {

std::string shape_text(const int64_t* shape, int32_t ndim) {
  std::string text = "(";
  for (int32_t i = 0; i < ndim; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

// Check an input against its signature; sizes of one name must be alike in all inputs, and within its limit.
void check_input(const Manifest& manifest, const TensorSpec& spec, const shiftadd_tensor& given,
                 std::map<std::string, int64_t>& sizes) {
  const std::string name = "Input " + quoted(spec.name);
  if (given.dtype != spec.type->dtype) {
    const ElementType* found = element_type(given.dtype);
    misuse(name + " has dtype " + std::string(found ? found->name : "unknown") + ", expected " + std::string(spec.type->name) + ".");
  }
  bool fits = given.ndim == static_cast<int32_t>(spec.shape.size()) && (given.ndim == 0 || given.shape);
  for (int32_t i = 0; fits && i < given.ndim; ++i) {
    const int64_t size = given.shape[i];
    const int64_t expected = spec.shape[i] == TensorSpec::kVaries ? sizes.try_emplace(spec.symbols[i], size).first->second
                                                                  : spec.shape[i];
    fits = size >= 0 && size == expected;
  }
  if (!fits) {
    std::string expected = "(";
    for (size_t i = 0; i < spec.shape.size(); ++i) {
      expected += (i ? ", " : "") + (spec.symbols[i].empty() ? std::to_string(spec.shape[i]) : quoted(spec.symbols[i]));
    }
    misuse(name + " has shape " + (given.shape ? shape_text(given.shape, std::clamp(given.ndim, 0, 16)) : "NULL") +
           ", expected " + expected + ").");
  }
  for (size_t i = 0; i < spec.shape.size(); ++i) {
    const int64_t most = spec.shape[i] == TensorSpec::kVaries ? manifest.limit(spec.symbols[i]) : INT64_MAX;
    if (given.shape[i] > most) {
      misuse(name + " has " + std::to_string(given.shape[i]) + " " + spec.symbols[i] + ", expected at most " +
             std::to_string(most) + ".");
    }
  }
}

Object input_tensor(const TensorSpec& spec, const shiftadd_tensor& given) {
  const std::vector<int64_t> shape(given.shape, given.shape + given.ndim);
  if (!given.data && tensor_bytes(*spec.type, shape) > 0) misuse("Input " + quoted(spec.name) + " has no data.");
  const bool aligned = reinterpret_cast<uintptr_t>(given.data) % kAlignment == 0;
  return aligned && given.data ? view_tensor(nullptr, given.data, *spec.type, shape)
                               : copied_tensor(given.data, *spec.type, shape);
}

std::vector<Object> input_tensors(const Manifest& manifest, const Signature& function,
                                  const shiftadd_tensor* inputs, size_t count) {
  std::vector<Object> tensors;
  std::map<std::string, int64_t> sizes;
  for (const TensorSpec& spec : function.inputs) {
    const auto named = [&](const shiftadd_tensor& given) { return given.name && spec.name == given.name; };
    const shiftadd_tensor* found = std::find_if(inputs, inputs + count, named);
    if (found == inputs + count) misuse("Function " + quoted(function.name) + " needs an input " + quoted(spec.name) + ".");
    check_input(manifest, spec, *found, sizes);
    tensors.push_back(input_tensor(spec, *found));
  }
  if (count != function.inputs.size()) {
    misuse("Function " + quoted(function.name) + " takes " + std::to_string(function.inputs.size()) + " inputs, " +
           std::to_string(count) + " were given.");
  }
  return tensors;
}

// The tensors of what a function gave: one, or a tuple of them.
std::vector<Object> output_tensors(const Signature& function, const Object& given) {
  std::vector<Object> tensors;
  if (given.is(kTVMFFIArray)) {
    const Object get = global_function("ffi.ArrayGetItem");
    for (size_t i = 0; i < function.outputs.size(); ++i) tensors.push_back(call(get, {given, static_cast<int64_t>(i)}));
  } else {
    tensors.push_back(given);
  }
  const auto valid = [](const Object& one) { return one.is(kTVMFFITensor) && element_type(one.tensor().dtype); };
  if (tensors.size() != function.outputs.size() || !std::all_of(tensors.begin(), tensors.end(), valid)) {
    fail(SHIFTADD_ERROR_INTERNAL, "Function " + quoted(function.name) + " gave other outputs than its manifest says.");
  }
  return tensors;
}

}  // namespace

size_t shiftadd_function_count(const shiftadd_model* model) {
  return model ? model->model->manifest().functions().size() : 0;
}

const char* shiftadd_function_name(const shiftadd_model* model, size_t index) {
  return index < shiftadd_function_count(model) ? model->model->manifest().functions()[index].name.c_str() : nullptr;
}

shiftadd_status shiftadd_function_signature(const shiftadd_model* model, const char* function,
                                            const shiftadd_tensor** inputs, size_t* input_count,
                                            const shiftadd_tensor** outputs, size_t* output_count) {
  return guarded([&] {
    const Model& m = checked(model);
    const Model::Shown& shown = m.shown(m.function(function));
    if (inputs) *inputs = shown.inputs.data();
    if (input_count) *input_count = shown.inputs.size();
    if (outputs) *outputs = shown.outputs.data();
    if (output_count) *output_count = shown.outputs.size();
  });
}

shiftadd_status shiftadd_call(shiftadd_model* model, const char* function, const shiftadd_tensor* inputs,
                              size_t input_count, shiftadd_result** result) {
  return guarded([&] {
    Model& m = checked(model);
    if (!result || (!inputs && input_count > 0)) misuse("inputs or result is NULL.");
    const Signature& signature = m.function(function);
    std::vector<Object> outputs;
    m.machine().run([&] {
      const std::vector<Object> tensors = input_tensors(m.manifest(), signature, inputs, input_count);
      std::vector<Named> arguments;
      for (size_t i = 0; i < tensors.size(); ++i) arguments.push_back({signature.inputs[i].name, tensors[i]});
      try {
        for (const Object& one : output_tensors(signature, m.machine().call(signature, arguments))) {
          outputs.push_back(m.machine().memory().download(one));
        }
      } catch (const TvmError& error) {
        fail(SHIFTADD_ERROR_INTERNAL, "Function " + quoted(signature.name) + " failed: " + error.message + ".");
      }
    });
    *result = new shiftadd_result{model->model, signature, std::move(outputs)};
  });
}

size_t shiftadd_result_count(const shiftadd_result* result) { return result ? result->tensors.size() : 0; }

shiftadd_status shiftadd_result_tensor(const shiftadd_result* result, size_t index, shiftadd_tensor* tensor) {
  return guarded([&] {
    if (!result || !tensor) misuse("result or tensor is NULL.");
    if (index >= result->tensors.size()) {
      misuse("Output " + std::to_string(index) + " was asked for, the function has " +
             std::to_string(result->tensors.size()) + ".");
    }
    const DLTensor& d = result->tensors[index].tensor();
    char* data = const_cast<char*>(begin_of(d));
    *tensor = {result->function.outputs[index].name.c_str(), element_type(d.dtype)->dtype, d.ndim, d.shape, data};
  });
}

void shiftadd_result_free(shiftadd_result* result) { delete result; }
