#include "machine.h"

#include <cstdlib>
#include <mutex>

#include "failure.h"
#include "tensors.h"

namespace shiftadd::internal {
namespace {

constexpr int64_t kNumber = 0, kPooled = 2;  // of the device; TVM's allocator
constexpr size_t kSmall = 4096;              // bytes of an input whose content is compared
constexpr char kSpins[] = "4000";  // yields of an idle thread before it sleeps: about two milliseconds

Object get_function(const Object& module, const std::string& name) {
  return call(global_function("ffi.ModuleGetFunction"), {module, name, true});
}

// Create the calling thread's pool. TVM reads its settings from the environment; its own are half of
// the processors on x86, pinned threads, and idle ones that spin for a tenth of a second.
int create_pool(int threads) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  setenv("TVM_NUM_THREADS", std::to_string(threads).c_str(), 1);
  setenv("TVM_BIND_THREADS", "0", 0);
  setenv("TVM_THREAD_POOL_SPIN_COUNT", kSpins, 0);
  return static_cast<int>(call_integer(global_function("runtime.NumThreads"), {}));
}

// What tells a captured graph from another one: where its arguments lie, and their shapes.
Object key_of(const std::vector<Object>& tensors) {
  std::vector<Argument> key;
  for (const Object& one : tensors) {
    key.push_back(static_cast<int64_t>(reinterpret_cast<intptr_t>(begin_of(one.tensor()))));
    for (const int64_t size : shape_of(one.tensor())) key.push_back(size);
  }
  return call(global_function("ffi.Shape"), key);
}

}  // namespace

Machine::Machine(std::shared_ptr<Artifact> artifact, int threads)
    : artifact_(std::move(artifact)), memory_(artifact_->manifest().device().empty() ? kHost : DLDevice{kDLCUDA, 0}) {
  tvm();  // a missing runtime is told before a thread is asked
  if (!memory_.is_host()) load_cuda();
  run([&] { open(threads); });
}

Machine::~Machine() {
  // the thread that made them lets go of them, in this order: the library's code goes last
  run([this] {
    functions_.clear();
    staged_.clear();
    parameters_ = machine_ = module_ = Object();
  });
}

void Machine::open(int threads) {
  const Manifest& manifest = artifact_->manifest();
  try {
    threads_ = create_pool(threads);
    module_ = open_module(*artifact_);
    const Object load = get_function(module_, "vm_load_executable");
    if (!load) manifest.bad(std::string(kLibrary) + " holds no virtual machine");
    machine_ = shiftadd::internal::call(load, {});
    const Object start = get_function(machine_, "vm_initialization");
    std::vector<Argument> devices = {int64_t{memory_.device().device_type}, kNumber, kPooled};
    if (!memory_.is_host()) devices.insert(devices.end(), {int64_t{kDLCPU}, kNumber, kPooled});
    shiftadd::internal::call(start, devices);
    for (const Signature& function : manifest.functions()) {
      const Object found = get_function(machine_, function.name);
      if (!found) manifest.bad(std::string(kLibrary) + " has no function " + quoted(function.name));
      functions_[function.name] = found;
    }
    bundle_parameters();
  } catch (const TvmError& error) {
    manifest.bad(std::string(kLibrary) + " cannot be loaded: " + error.message);
  }
}

void Machine::bundle_parameters() {
  const std::vector<TensorSpec>& specs = artifact_->manifest().parameters();
  std::vector<Object> tensors;
  for (size_t i = 0; i < specs.size(); ++i) {
    const Object mapped = view_tensor(artifact_, artifact_->parameters()[i], *specs[i].type, specs[i].shape);
    tensors.push_back(memory_.upload(mapped));
  }
  parameters_ = shiftadd::internal::call(global_function("ffi.Array"), {tensors.begin(), tensors.end()});
}

// An input where a function reads it. A step's inputs are small, and mostly those of the step before; they
// stay where they are, as a captured graph wants it.
Object Machine::placed(const TensorSpec& input, const Object& given) {
  const DLTensor& from = given.tensor();
  if (from.device.device_type == memory_.device().device_type) return given;
  const size_t bytes = bytes_of(from);
  const char* data = begin_of(from);
  const std::vector<char> content(data, data + (bytes <= kSmall ? bytes : 0));
  Staged& staged = staged_[&input];
  const bool fits = staged.tensor && element_type(staged.tensor.tensor().dtype) == element_type(from.dtype) &&
                    shape_of(staged.tensor.tensor()) == shape_of(from);
  if (!fits) {
    staged = {};
    staged = {memory_.upload(given), content};
  } else if (bytes > kSmall || staged.content != content) {
    memory_.write(staged.tensor, data, bytes);
    staged.content = content;
  }
  return staged.tensor;
}

Object Machine::call(const Signature& function, const std::vector<Named>& arguments) {
  std::vector<const Named*> found_all;
  std::vector<Object> held;
  for (const TensorSpec& input : function.inputs) {
    const Named* found = nullptr;
    for (const Named& argument : arguments) {
      if (argument.name == input.name) found = &argument;
    }
    if (!found) {
      fail(SHIFTADD_ERROR_UNSUPPORTED, "Function " + quoted(function.name) + " has an input " + quoted(input.name) +
                                           ", which this version does not know; use the version that compiled it.");
    }
    found_all.push_back(found);
  }
  try {
    for (size_t i = 0; i < found_all.size(); ++i) held.push_back(placed(function.inputs[i], found_all[i]->tensor));
    if (function.captured) held.push_back(key_of(held));
    if (function.parameters) held.push_back(parameters_);
    const std::vector<Argument> ordered(held.begin(), held.end());
    return shiftadd::internal::call(functions_.at(function.name), ordered);
  } catch (const TvmError& error) {
    fail(SHIFTADD_ERROR_INTERNAL, "Function " + quoted(function.name) + " failed: " + error.message + ".");
  }
}

void Machine::profile(shiftadd_profile_callback callback, void* user) {
  profile_ = {callback, user, {}};
  try {
    const Object created = callback ? callback_function(&profile_, &Machine::observe) : Object();
    const Object set = get_function(machine_, "set_instrument");
    shiftadd::internal::call(set, {callback ? Argument(created) : Argument::none()});
  } catch (const TvmError& error) {
    fail(SHIFTADD_ERROR_INTERNAL, "Operators cannot be measured: " + error.message + ".");
  }
}

// What the virtual machine calls before and after each call: with the function, its name, and which it is.
int Machine::observe(void* profile, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  const auto now = std::chrono::steady_clock::now();
  Profile& own = *static_cast<Profile*>(profile);
  result->type_index = kTVMFFINone;
  if (count < 3 || arguments[1].type_index != kTVMFFIRawStr) return 0;
  const bool before = arguments[2].v_int64 != 0;
  if (!before) own.callback(arguments[1].v_c_str, std::chrono::duration<double>(now - own.begun).count(), own.user);
  own.begun = std::chrono::steady_clock::now();
  return 0;
}

}  // namespace shiftadd::internal
