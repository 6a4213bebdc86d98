#include "gpu.h"

#include <dlfcn.h>

#include <cstdlib>

namespace shiftadd::internal {
namespace {

constexpr char kDriver[] = "libcuda.so.1";
constexpr int kMajor = 75, kMinor = 76;  // the driver's attributes of a GPU's compute capability

// What is asked of the driver, which is never linked: a machine may have none.
struct Driver {
  int (*init)(unsigned);
  int (*count)(int*);
  int (*device)(int*, int);
  int (*attribute)(int*, int, int);
};

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

// The first GPU's compute capability, as 10 * major + minor; 0 where the driver knows none.
int capability(void* library) {
  Driver driver;
  const bool whole = find(library, "cuInit", driver.init) && find(library, "cuDeviceGetCount", driver.count) &&
                     find(library, "cuDeviceGet", driver.device) &&
                     find(library, "cuDeviceGetAttribute", driver.attribute);
  int count = 0, device = 0, major = 0, minor = 0;
  if (!whole || driver.init(0) != 0 || driver.count(&count) != 0 || count == 0) return 0;
  if (driver.device(&device, 0) != 0 || driver.attribute(&major, kMajor, device) != 0) return 0;
  return driver.attribute(&minor, kMinor, device) != 0 ? 0 : 10 * major + minor;
}

}  // namespace

std::string gpu_lacks(const std::string& architecture) {
  void* library = dlopen(kDriver, RTLD_NOW | RTLD_GLOBAL);
  if (!library) return std::string("a CUDA driver (") + kDriver + ")";
  const int found = capability(library);
  if (found == 0) return "a GPU that the CUDA driver knows";
  const long needed = std::strtol(architecture.c_str() + architecture.find('_') + 1, nullptr, 10);
  // code runs on the same major version, of the same minor one or a later
  if (found / 10 == needed / 10 && found % 10 >= needed % 10) return "";
  return "a GPU for " + architecture + " (this one is sm_" + std::to_string(found) + ")";
}

}  // namespace shiftadd::internal
