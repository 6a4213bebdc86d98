// TVM's stable C ABI (tvm/ffi/c_api.h): where its functions come from, and objects that free themselves.
//
// The libraries are opened at run time, so that libshiftadd itself loads anywhere and can say what is
// missing. A build with SHIFTADD_STATIC_RUNTIME takes the functions that it is linked with instead.
#pragma once

#include <tvm/ffi/c_api.h>

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace shiftadd::internal {

// The functions of c_api.h that are used.
struct Tvm {
  decltype(&TVMFFIObjectIncRef) object_inc_ref;
  decltype(&TVMFFIObjectDecRef) object_dec_ref;
  decltype(&TVMFFIFunctionGetGlobal) function_get_global;
  decltype(&TVMFFIFunctionCall) function_call;
  decltype(&TVMFFIFunctionCreate) function_create;
  decltype(&TVMFFIErrorMoveFromRaised) error_move_from_raised;
  decltype(&TVMFFITensorFromDLPack) tensor_from_dlpack;
};

// Load the libraries from these paths unless they are loaded; a path may be empty. Failure unsupported.
void load_tvm(const std::string& runtime_library, const std::string& ffi_library);

// The functions; loads the libraries from beside libshiftadd, or by name, the first time.
const Tvm& tvm();

// Load TVM's runtime for CUDA too, from beside its runtime or by name. Failure unsupported.
void load_cuda();

// A counted reference to an object of TVM; may be empty.
class Object {
 public:
  Object() = default;
  explicit Object(TVMFFIObjectHandle owned) : handle_(owned) {}
  Object(const Object& other) : handle_(other.handle_) {
    if (handle_) tvm().object_inc_ref(handle_);
  }
  Object(Object&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Object& operator=(Object other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Object() {
    if (handle_) tvm().object_dec_ref(handle_);
  }

  explicit operator bool() const { return handle_ != nullptr; }
  bool is(int32_t type_index) const { return handle_ && TVMFFIObjectGetTypeIndex(handle_) == type_index; }
  TVMFFIObjectHandle handle() const { return handle_; }
  const DLTensor& tensor() const { return *TVMFFITensorGetDLTensorPtr(handle_); }

 private:
  TVMFFIObjectHandle handle_ = nullptr;
};

// An argument of a function: a view, valid as long as what it shows.
class Argument {
 public:
  Argument(const Object& object);
  Argument(int64_t value);
  Argument(bool value);
  Argument(const std::string& text);
  explicit Argument(DLDataType type);
  explicit Argument(DLDevice device);
  static Argument none();
  static Argument pointer(void* address);
  const TVMFFIAny& view() const { return view_; }

 private:
  Argument() = default;

  TVMFFIAny view_ = {};
};

// An error that TVM has raised on this thread.
struct TvmError {
  std::string message;  // one line
};

// The function that TVM knows by this name. TvmError.
Object global_function(const std::string& name);

// A function that calls `code` with `self`, which must outlive it. TvmError.
Object callback_function(void* self, TVMFFISafeCallType code);

// Call a function; empty where it gives None or no object. TvmError for what it raises.
Object call(const Object& function, const std::vector<Argument>& arguments);

// As call(), of a function that gives a whole number.
int64_t call_integer(const Object& function, const std::vector<Argument>& arguments);

}  // namespace shiftadd::internal
