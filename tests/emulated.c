/* Runs one compiled kernel on operands from a file, with what it needs of TVM's runtime, serially.
 *
 *     emulated KERNEL OPERANDS RESULTS
 *
 * OPERANDS: the number of operands and how many of them, the last ones, are results (int64); of each
 * its type code, bits, axes, sizes (int64) and bytes; of a number -1 axes and its value (int64).
 * RESULTS gets the bytes of the results.
 * KERNELS(X) is given to the compiler: X(name) for every kernel.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

enum { MAX_TENSORS = 16, MAX_AXES = 8, ALIGNMENT = 64, TASKS = 3 };

typedef struct {
  void* sync_handle;
  int32_t num_task;
} Group;
typedef int (*Task)(int task_id, Group* group, void* data);

static void fail(const char* what) {
  fputs("emulated: ", stderr);
  fputs(what, stderr);
  exit(1);
}

static void* allocate(uint64_t bytes) {
  void* found = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
  if (!found) fail("out of memory");
  return found;
}

static void* alloc_workspace(int type, int id, uint64_t bytes, int code, int bits) {
  return memset(allocate(bytes), 0xA5, bytes); /* nobody may count on zeros */
}

static int free_workspace(int type, int id, void* pointer) {
  free(pointer);
  return 0;
}

static int parallel_launch(Task task, void* data, int tasks) {
  Group group = {NULL, tasks ? tasks : TASKS};
  for (int i = 0; i < group.num_task; ++i)
    if (task(i, &group, data)) return -1;
  return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  for (int32_t i = 0; i < count; ++i) fputs(parts[i], stderr);
  fail(kind);
}

/* the pointers through which a library reaches the runtime that loads it */
void* __TVMBackendAllocWorkspace = (void*)alloc_workspace;
void* __TVMBackendFreeWorkspace = (void*)free_workspace;
void* __TVMBackendParallelLaunch = (void*)parallel_launch;

#define DECLARE(name) \
  int __tvm_ffi_##name(void* handle, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result);
#define ENTRY(name) {#name, __tvm_ffi_##name},
KERNELS(DECLARE)
static const struct {
  const char* name;
  TVMFFISafeCallType run;
} kernels[] = {KERNELS(ENTRY)};

static void read_exactly(void* target, uint64_t bytes, FILE* file) {
  if (fread(target, 1, bytes, file) != bytes) fail("the operands end early");
}

static int64_t read_number(FILE* file) {
  int64_t value;
  read_exactly(&value, sizeof value, file);
  return value;
}

static uint64_t read_operand(TVMFFIAny* any, DLTensor* tensor, int64_t* shape, FILE* file) {
  memset(tensor, 0, sizeof *tensor);
  tensor->device.device_type = kDLCPU;
  tensor->dtype.code = read_number(file);
  tensor->dtype.bits = read_number(file);
  tensor->dtype.lanes = 1;
  tensor->ndim = read_number(file);
  tensor->shape = shape;
  tensor->strides = shape + MAX_AXES;
  if (tensor->ndim > MAX_AXES) fail("a tensor has too many axes");
  if (tensor->ndim < 0) {
    any->type_index = kTVMFFIInt;
    any->v_int64 = read_number(file);
    return 0;
  }
  any->type_index = kTVMFFIDLTensorPtr;
  any->v_ptr = tensor;
  uint64_t elements = 1;
  for (int i = 0; i < tensor->ndim; ++i) shape[i] = read_number(file);
  for (int i = tensor->ndim - 1; i >= 0; --i) {
    tensor->strides[i] = elements;
    elements *= shape[i];
  }
  uint64_t bytes = elements * tensor->dtype.bits / 8;
  read_exactly(tensor->data = allocate(bytes), bytes, file);
  return bytes;
}

static TVMFFISafeCallType find(const char* name) {
  for (size_t i = 0; i < sizeof kernels / sizeof *kernels; ++i)
    if (!strcmp(kernels[i].name, name)) return kernels[i].run;
  fail("no such kernel");
  return NULL;
}

int main(int count, char** words) {
  if (count != 4) fail("expected KERNEL OPERANDS RESULTS");
  FILE* operands = fopen(words[2], "rb");
  if (!operands) fail("the operands cannot be opened");
  int64_t tensors = read_number(operands), results = read_number(operands);
  if (tensors > MAX_TENSORS) fail("too many tensors");
  DLTensor all[MAX_TENSORS];
  int64_t shapes[MAX_TENSORS][2 * MAX_AXES];
  uint64_t bytes[MAX_TENSORS];
  TVMFFIAny arguments[MAX_TENSORS], result;
  memset(arguments, 0, sizeof arguments);
  memset(&result, 0, sizeof result);
  for (int i = 0; i < tensors; ++i)
    bytes[i] = read_operand(&arguments[i], &all[i], shapes[i], operands);
  if (find(words[1])(NULL, arguments, tensors, &result)) fail("the kernel failed");
  FILE* file = fopen(words[3], "wb");
  for (int i = tensors - results; file && i < tensors; ++i)
    if (fwrite(all[i].data, 1, bytes[i], file) != bytes[i]) fail("the results cannot be written");
  if (!file || fclose(file)) fail("the results cannot be written");
  return 0;
}
