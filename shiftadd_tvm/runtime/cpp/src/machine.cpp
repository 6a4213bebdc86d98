#include "machine.h"

#include <cstdlib>
#include <mutex>

#include "failure.h"
#include "tensors.h"

namespace shiftadd::internal {
namespace {

constexpr int64_t kCpu = 1, kDevice = 0, kPooled = 2;  // DLPack's kDLCPU, its number, TVM's allocator
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

}  // namespace

Machine::Machine(std::shared_ptr<Artifact> artifact, int threads) : artifact_(std::move(artifact)) {
  tvm();  // a missing runtime is told before a thread is asked
  run([&] { open(threads); });
}

Machine::~Machine() {
  // the thread that made them lets go of them, in this order: the library's code goes last
  run([this] {
    functions_.clear();
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
    shiftadd::internal::call(start, {kCpu, kDevice, kPooled});
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
    tensors.push_back(view_tensor(artifact_, artifact_->parameters()[i], *specs[i].type, specs[i].shape));
  }
  parameters_ = shiftadd::internal::call(global_function("ffi.Array"), {tensors.begin(), tensors.end()});
}

Object Machine::call(const Signature& function, const std::vector<Named>& arguments) {
  std::vector<Argument> ordered;
  for (const TensorSpec& input : function.inputs) {
    const Named* found = nullptr;
    for (const Named& argument : arguments) {
      if (argument.name == input.name) found = &argument;
    }
    if (!found) {
      fail(SHIFTADD_ERROR_UNSUPPORTED, "Function " + quoted(function.name) + " has an input " + quoted(input.name) +
                                           ", which this version does not know; use the version that compiled it.");
    }
    ordered.push_back(found->tensor);
  }
  if (function.parameters) ordered.push_back(parameters_);
  try {
    return shiftadd::internal::call(functions_.at(function.name), ordered);
  } catch (const TvmError& error) {
    fail(SHIFTADD_ERROR_INTERNAL, "Function " + quoted(function.name) + " failed: " + error.message + ".");
  }
}

}  // namespace shiftadd::internal
