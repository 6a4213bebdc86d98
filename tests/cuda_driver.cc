// A CUDA driver and runtime on a processor, for the tests: what TVM's runtime for CUDA asks of the two.
// Memory of the device is memory of the host, streams are done at once, and kernels are those of the
// library that SHIFTADD_EMULATED_KERNELS names: the generated CUDA source, compiled with cuda_emulated.h.
#include <cuda.h>
#include <cuda_runtime_api.h>
#undef cuStreamBeginCapture
#undef cuMemcpyHtoD
#undef cuMemcpyDtoH
#undef cuMemcpyDtoD
#undef cuMemsetD8
#undef cuEventElapsedTime
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

static size_t used;
static std::map<void*, size_t>& blocks() {
  static std::map<void*, size_t> all;
  return all;
}
static size_t setting(const char* name, size_t otherwise) {
  const char* text = getenv(name);
  return text ? strtoull(text, nullptr, 10) : otherwise;
}
static size_t memory() { return setting("SHIFTADD_EMULATED_MEMORY", 4ull << 30); }
static int attribute(int which) {
  int arch = (int)setting("SHIFTADD_EMULATED_ARCH", 90);
  if (which == cudaDevAttrComputeCapabilityMajor) return arch / 10;
  if (which == cudaDevAttrComputeCapabilityMinor) return arch % 10;
  if (which == cudaDevAttrWarpSize) return 32;
  if (which == cudaDevAttrMultiProcessorCount) return 2;
  return 1024;
}

struct Entry {
  const char* name;
  void (*run)(void**);
  int arguments;
};
typedef void (*Launch)(void (*)(void**), const unsigned*, const unsigned*, size_t, void**);
// A module is the library of the kernels. Machine code says nothing of it, so the environment does; an
// image that a test made up names the library itself.
static const char MADE_UP[] = "\x7f" "ELF:";
static const char* place(const char* image) {
  return strncmp(image, MADE_UP, 5) ? getenv("SHIFTADD_EMULATED_KERNELS") : image + 5;
}
static Launch launch_of(void* library) { return (Launch)dlsym(library, "emulated_launch"); }
struct Function {
  void (*run)(void**);
  Launch launch;
  int arguments;
};
// A launch that a graph replays, with the values that its arguments had.
struct Recorded {
  const Function* kernel;
  std::vector<unsigned> sizes;  // of the grid and of a block
  size_t shared;
  std::vector<unsigned long long> values;
};
struct Recording {
  std::vector<Recorded> launches;
};
// Both libraries are made of this file: what they share is the driver's.
struct Graphs {
  Recording* recording;  // of the one stream that is captured: nothing else may be asked for meanwhile
  int launched;
};
extern "C" Graphs emulated_graphs;
Graphs emulated_graphs;
static Graphs& graphs() {
  static void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  return *(Graphs*)dlsym(driver, "emulated_graphs");
}
static bool refused_while_capturing(const char* what) {
  if (graphs().recording) fprintf(stderr, "emulated GPU: %s while a stream is captured\n", what);
  return graphs().recording != nullptr;
}

// A graph that cuda/gpu.py makes runs while it is captured; the clock is made up: a launch takes a
// millisecond for each thread of a block, so that a test knows which kernel is the fastest.
struct Graph { unsigned threads; };
static Graph* capturing;

extern "C" {
void emulated_busy(unsigned threads) {  // a library's launch
  if (capturing) capturing->threads += threads;
}
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
// NVRTC asks for a table of functions that no header names, and takes whatever a driver that begins gives
CUresult cuGetExportTable(const void** table, const CUuuid*) { return *table = nullptr, CUDA_ERROR_NOT_FOUND; }
CUresult cuDeviceGetCount(int* count) { return *count = (int)setting("SHIFTADD_EMULATED_GPUS", 1), CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int index) { return *device = index, CUDA_SUCCESS; }
CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  return snprintf(name, size, "emulated GPU"), CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice) {
  return *value = attribute(which), CUDA_SUCCESS;
}
#undef cuDeviceTotalMem
CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) { return *bytes = memory(), CUDA_SUCCESS; }
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult, const char** text) { return *text = "CUDA_ERROR_EMULATED", CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** text) { return *text = "emulated error", CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  if (memcmp(image, "\x7f" "ELF", 4)) return CUDA_ERROR_INVALID_IMAGE;
  void* library = dlopen(place((const char*)image), RTLD_NOW);
  if (!library) fprintf(stderr, "emulated GPU: %s\n", dlerror());
  return *module = (CUmodule)library, library ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  const Entry* entry = (const Entry*)dlsym(module, "emulated_kernels");
  while (entry->name && strcmp(entry->name, name)) entry++;
  *function = (CUfunction)new Function{entry->run, launch_of(module), entry->arguments};
  return entry->name ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
static CUresult run_kernel(CUfunction function, const unsigned* grid, const unsigned* block, size_t shared,
                           void** given) {
  const Function* kernel = (const Function*)function;
  kernel->launch(kernel->run, grid, block, shared, given);
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** given, void**) {
  unsigned grid[] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  unsigned block[] = {config->blockDimX, config->blockDimY, config->blockDimZ};
  emulated_busy(block[0] * block[1] * block[2]);
  if (Recording* recording = graphs().recording) {
    const Function* kernel = (const Function*)function;
    std::vector<unsigned> sizes(grid, grid + 3);
    sizes.insert(sizes.end(), block, block + 3);
    std::vector<unsigned long long> values(kernel->arguments);
    for (int i = 0; i < kernel->arguments; i++) memcpy(&values[i], given[i], 8);
    recording->launches.push_back({kernel, sizes, config->sharedMemBytes, values});
    return CUDA_SUCCESS;
  }
  return run_kernel(function, grid, block, config->sharedMemBytes, given);
}
CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill) {
  return CUDA_ERROR_NOT_SUPPORTED;
}

static cudaError_t last = cudaSuccess;
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  return *value = attribute(which), cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
  return memset(found, 0, sizeof *found), strcpy(found->name, "emulated GPU"), cudaSuccess;
}
cudaError_t cudaMalloc(void** to, size_t size) {
  if (refused_while_capturing("memory is asked for")) return last = cudaErrorStreamCaptureUnsupported;
  if (used + size > memory()) return last = cudaErrorMemoryAllocation;
  size_t whole = (size + 255) / 256 * 256 + 256;
  *to = aligned_alloc(256, whole);
  memset(*to, 0xA5, whole);
  used += size, blocks()[*to] = size;
  return cudaSuccess;
}
cudaError_t cudaFree(void* block) {
  if (block) used -= blocks()[block], blocks().erase(block), free(block);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** to, size_t size) { return *to = malloc(size), cudaSuccess; }
cudaError_t cudaFreeHost(void* block) { return free(block), cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* left, size_t* all) {
  return *left = memory() - used, *all = memory(), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
  if (refused_while_capturing("memory is copied")) return last = cudaErrorStreamCaptureUnsupported;
  return memmove(to, from, size), cudaSuccess;
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t) {
  if (refused_while_capturing("memory is copied")) return last = cudaErrorStreamCaptureUnsupported;
  return memmove(to, from, size), cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t error) { return error ? "cudaErrorEmulated" : "cudaSuccess"; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : error ? "emulated error" : "no error";
}
cudaError_t cudaGetLastError() {
  cudaError_t error = last;
  return last = cudaSuccess, error;
}
cudaError_t cudaPeekAtLastError() { return last; }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = (cudaEvent_t)1, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* time, cudaEvent_t, cudaEvent_t) { return *time = 0, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = nullptr, cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = nullptr, cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  if (refused_while_capturing("a stream is captured")) return last = cudaErrorStreamCaptureUnsupported;
  return graphs().recording = new Recording, cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = (cudaGraph_t)graphs().recording, graphs().recording = nullptr;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  return *made = (cudaGraphExec_t) new Recording(*(Recording*)graph), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  for (Recorded& one : ((Recording*)graph)->launches) {
    std::vector<void*> given;
    for (unsigned long long& value : one.values) given.push_back(&value);
    run_kernel((CUfunction)one.kernel, one.sizes.data(), one.sizes.data() + 3, one.shared, given.data());
  }
  graphs().launched++;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete (Recording*)graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete (Recording*)graph, cudaSuccess; }

// What cuda/gpu.py asks of a driver beside that.
static float now;
CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return *context = (CUcontext)1, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
#undef cuMemAlloc
CUresult cuMemAlloc_v2(CUdeviceptr* to, size_t size) {
  return cudaMalloc((void**)to, size) ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t size) {
  return memcpy((void*)to, from, size), CUDA_SUCCESS;
}
CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t size) {
  return memcpy(to, (void*)from, size), CUDA_SUCCESS;
}
CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t size) {
  return memcpy((void*)to, (void*)from, size), CUDA_SUCCESS;
}
CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t size) {
  return memset((void*)to, value, size), CUDA_SUCCESS;
}
CUresult cuStreamCreate(CUstream* stream, unsigned) { return *stream = (CUstream)1, CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream) { return CUDA_SUCCESS; }
CUresult cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode) {
  return capturing = new Graph{0}, CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream, CUgraph* graph) {
  *graph = (CUgraph)capturing, capturing = nullptr;
  return CUDA_SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec* made, CUgraph graph, unsigned long long) {
  return *made = (CUgraphExec)graph, CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec graph, CUstream) {
  return now += (float)((const Graph*)graph)->threads, CUDA_SUCCESS;
}
CUresult cuEventCreate(CUevent* event, unsigned) { return *event = (CUevent)new float, CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent event, CUstream) { return *(float*)event = now, CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent) { return CUDA_SUCCESS; }
CUresult cuEventElapsedTime(float* taken, CUevent start, CUevent end) {
  return *taken = *(float*)end - *(float*)start, CUDA_SUCCESS;
}
}
