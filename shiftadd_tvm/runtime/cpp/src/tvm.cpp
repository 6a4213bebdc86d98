#include "tvm.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>

#include "failure.h"

namespace shiftadd::internal {
namespace {

std::mutex mutex;  // of loading
std::atomic<const Tvm*> loaded{nullptr};

#ifdef SHIFTADD_STATIC_RUNTIME

const Tvm* open_libraries(const std::string&, const std::string&) {
  static constexpr Tvm kLinked = {TVMFFIObjectIncRef,   TVMFFIObjectDecRef,        TVMFFIFunctionGetGlobal,
                                  TVMFFIFunctionCall,   TVMFFIFunctionCreate,      TVMFFIErrorMoveFromRaised,
                                  TVMFFITensorFromDLPack};
  return &kLinked;
}

void open_cuda() {
  fail(SHIFTADD_ERROR_UNSUPPORTED, "This program has TVM's runtime linked in, which is without CUDA; use libshiftadd.so.");
}

#else

constexpr char kRuntime[] = "libtvm_runtime.so";
constexpr char kCuda[] = "libtvm_runtime_cuda.so";
constexpr char kFfi[] = "libtvm_ffi.so";

std::string runtime_folder;  // where the runtime was found; "" where by name

// The folder of a path, with its last slash; "" where it has none.
std::string folder_of(const std::string& path) { return path.substr(0, path.rfind('/') + 1); }

// The folder that libshiftadd was loaded from.
std::string own_folder() {
  Dl_info found;
  return dladdr(&mutex, &found) && found.dli_fname ? folder_of(found.dli_fname) : std::string();
}

struct Opened {
  void* handle;
  std::string path;
};

// Open a library for all: the compiled model looks its functions up among them.
Opened open_library(const std::vector<std::string>& candidates, const std::string& what, const std::string& remedy) {
  std::string reasons;
  for (const std::string& candidate : candidates) {
    if (void* handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_GLOBAL)) return {handle, candidate};
    const char* reason = dlerror();
    reasons += (reasons.empty() ? "" : "; ") + quoted(reason ? reason : candidate);
  }
  fail(SHIFTADD_ERROR_UNSUPPORTED, what + " cannot be loaded (" + reasons + "); " + remedy);
}

void* open_runtime(const std::vector<std::string>& candidates) {
  const Opened opened = open_library(candidates, "TVM's runtime",
                                     std::string("put ") + kRuntime + " and " + kFfi +
                                         " beside libshiftadd, or call shiftadd_load_runtime with their paths.");
  runtime_folder = folder_of(opened.path);
  return opened.handle;
}

void open_cuda() {
  const std::vector<std::string> candidates = {runtime_folder + kCuda, kCuda};
  open_library(candidates, "TVM's runtime for CUDA",
               std::string("put ") + kCuda + " and CUDA's libcudart.so.13 beside " + kRuntime + ".");
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  void* found = dlsym(library, name);
  if (!found) {
    fail(SHIFTADD_ERROR_UNSUPPORTED, std::string(kFfi) + " has no function " + name +
                                         "; use the libraries of the version that the artifact was compiled with.");
  }
  function = reinterpret_cast<Function>(found);
}

const Tvm* open_libraries(const std::string& runtime_library, const std::string& ffi_library) {
  std::vector<std::string> runtimes = {own_folder() + kRuntime, kRuntime}, ffis = {own_folder() + kFfi, kFfi};
  if (!runtime_library.empty()) runtimes = {runtime_library}, ffis = {folder_of(runtime_library) + kFfi};
  if (!ffi_library.empty()) ffis = {ffi_library};
  void* ffi = open_runtime(ffis);  // first: the runtime needs it, under its name
  open_runtime(runtimes);
  static Tvm found;
  find(ffi, "TVMFFIObjectIncRef", found.object_inc_ref);
  find(ffi, "TVMFFIObjectDecRef", found.object_dec_ref);
  find(ffi, "TVMFFIFunctionGetGlobal", found.function_get_global);
  find(ffi, "TVMFFIFunctionCall", found.function_call);
  find(ffi, "TVMFFIFunctionCreate", found.function_create);
  find(ffi, "TVMFFIErrorMoveFromRaised", found.error_move_from_raised);
  find(ffi, "TVMFFITensorFromDLPack", found.tensor_from_dlpack);
  return &found;
}

#endif

// The first line of a raised error: its later ones are TVM's own stack.
TvmError raised() {
  TVMFFIObjectHandle handle = nullptr;
  tvm().error_move_from_raised(&handle);
  const Object error(handle);
  if (!error.is(kTVMFFIError)) return {"an error without a message"};
  const TVMFFIByteArray message = TVMFFIErrorGetCellPtr(handle)->message;
  const std::string_view text(message.data, message.size);
  const size_t begin = std::min(text.find_first_not_of(" \n"), text.size());
  return {quoted(text.substr(begin, text.find('\n', begin) - begin))};
}

TVMFFIAny call_any(const Object& function, const std::vector<Argument>& arguments) {
  std::vector<TVMFFIAny> views;
  views.reserve(arguments.size());
  for (const Argument& argument : arguments) views.push_back(argument.view());
  TVMFFIAny result = {};
  if (tvm().function_call(function.handle(), views.data(), static_cast<int32_t>(views.size()), &result) != 0) {
    throw raised();
  }
  return result;
}

}  // namespace

void load_tvm(const std::string& runtime_library, const std::string& ffi_library) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!loaded.load(std::memory_order_relaxed)) {
    loaded.store(open_libraries(runtime_library, ffi_library), std::memory_order_release);
  }
}

const Tvm& tvm() {
  const Tvm* functions = loaded.load(std::memory_order_acquire);
  if (functions) return *functions;
  load_tvm("", "");
  return *loaded.load(std::memory_order_acquire);
}

void load_cuda() {
  tvm();
  const std::lock_guard<std::mutex> lock(mutex);
  open_cuda();
}

Argument::Argument(const Object& object) {
  view_.type_index = TVMFFIObjectGetTypeIndex(object.handle());
  view_.v_obj = static_cast<TVMFFIObject*>(object.handle());
}

Argument::Argument(int64_t value) {
  view_.type_index = kTVMFFIInt;
  view_.v_int64 = value;
}

Argument::Argument(bool value) {
  view_.type_index = kTVMFFIBool;
  view_.v_int64 = value;
}

Argument::Argument(const std::string& text) {
  view_.type_index = kTVMFFIRawStr;
  view_.v_c_str = text.c_str();
}

Argument::Argument(DLDataType type) {
  view_.type_index = kTVMFFIDataType;
  view_.v_dtype = type;
}

Argument::Argument(DLDevice device) {
  view_.type_index = kTVMFFIDevice;
  view_.v_device = device;
}

Argument Argument::none() { return {}; }

Argument Argument::pointer(void* address) {
  Argument argument;
  argument.view_.type_index = kTVMFFIOpaquePtr;
  argument.view_.v_ptr = address;
  return argument;
}

Object global_function(const std::string& name) {
  const TVMFFIByteArray bytes{name.data(), name.size()};
  TVMFFIObjectHandle handle = nullptr;
  if (tvm().function_get_global(&bytes, &handle) != 0) throw raised();
  if (!handle) throw TvmError{"TVM's runtime has no function " + name};
  return Object(handle);
}

Object callback_function(void* self, TVMFFISafeCallType code) {
  TVMFFIObjectHandle handle = nullptr;
  if (tvm().function_create(self, code, nullptr, &handle) != 0) throw raised();
  return Object(handle);
}

Object call(const Object& function, const std::vector<Argument>& arguments) {
  const TVMFFIAny result = call_any(function, arguments);
  return result.type_index >= kTVMFFIStaticObjectBegin ? Object(result.v_obj) : Object();
}

int64_t call_integer(const Object& function, const std::vector<Argument>& arguments) {
  const TVMFFIAny result = call_any(function, arguments);
  const Object owner = result.type_index >= kTVMFFIStaticObjectBegin ? Object(result.v_obj) : Object();
  if (result.type_index != kTVMFFIInt) throw TvmError{"a function gave no whole number"};
  return result.v_int64;
}

}  // namespace shiftadd::internal
