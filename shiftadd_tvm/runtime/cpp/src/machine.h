// The compiled functions of an artifact: TVM's virtual machine, with the parameters and a thread.
#pragma once

#include <shiftadd/shiftadd.h>

#include <chrono>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "artifact.h"
#include "memory.h"
#include "tvm.h"
#include "worker.h"

namespace shiftadd::internal {

// A named argument of an exported function.
struct Named {
  std::string_view name;
  const Object& tensor;
};

class Machine {
 public:
  // Open the library of `artifact` with so many threads that compute. Failure bad file or unsupported.
  Machine(std::shared_ptr<Artifact> artifact, int threads);
  ~Machine();

  // Run something on the thread that makes all calls; only there may call() be called.
  void run(const std::function<void()>& work) { worker_.run(work); }

  // Call a function with arguments found by their names; the parameters are added where it takes them, and
  // what lies in the machine's memory is copied to the GPU where that is what computes.
  // Failure internal for what a kernel raises, bad file for an input that is not among `arguments`.
  Object call(const Signature& function, const std::vector<Named>& arguments);

  // Report what each call of an operator takes, until `callback` is null.
  void profile(shiftadd_profile_callback callback, void* user);

  int threads() const { return threads_; }
  const Memory& memory() const { return memory_; }  // where the functions' tensors lie

 private:
  // The last one of an input that was copied to the GPU: it is written again where it changes.
  struct Staged {
    Object tensor;
    std::vector<char> content;  // of small ones
  };

  struct Profile {
    shiftadd_profile_callback callback;
    void* user;
    std::chrono::steady_clock::time_point begun;
  };

  static int observe(void* profile, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result);
  void open(int threads);
  void bundle_parameters();
  Object placed(const TensorSpec& input, const Object& given);

  std::shared_ptr<Artifact> artifact_;
  Memory memory_;
  int threads_ = 0;
  Object module_, machine_, parameters_;
  std::map<std::string_view, Object> functions_;
  std::map<const TensorSpec*, Staged> staged_;
  Profile profile_ = {};
  Worker worker_;  // last, so that it ends first
};

// The module of a compiled library. Replaced where a program has its model linked in. TvmError.
Object open_module(const Artifact& artifact);

}  // namespace shiftadd::internal
