// CUDA on a processor, for the tests: what generated kernels use of the language, of its functions, and
// the bodies of the device functions in schedules/cuda/_instructions.py. Every thread of a block is a fiber;
// fibers run one at a time, in an order that nobody may rely on, until they meet at a barrier or in
// a collective operation of their warp. One that not all lanes reach which it needs ends the program.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#define SHIFTADD_EMULATED
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other
#define alignas(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
#define CUDART_INF ((double)INFINITY)
typedef uint32_t u32;
struct uint4 { u32 x, y, z, w; };
typedef _Float16 half, __half;
struct __half2 { __half x, y; };
static inline bool __hgt(half a, half b) { return a > b; }
static inline bool __hlt(half a, half b) { return a < b; }
static inline float __half2float(half a) { return (float)a; }
static inline half __float2half(float a) { return (half)a; }
static inline half __float2half_rn(float a) { return (half)a; }
static inline __half2 __floats2half2_rn(float a, float b) { return {(half)a, (half)b}; }

struct Dim { unsigned x, y, z; };
extern Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

enum State { READY, IN_WARP, AT_BARRIER, DONE };
enum Kind { SHUFFLE, SHUFFLE_XOR, SHUFFLE_DOWN, BALLOT, ADD_LANES, MAX_LANES, MMA_B1, MMA_B1_HALF, MMA_F16, MMA_TF32, MMA_U8, MMA_S8 };
const int LANES = 32, MOST = 1024, STACK = 96 << 10;

struct Request {  // what a lane asks of its warp
  Kind kind;
  bool all;  // whether every lane must take part
  u32 value, index, high;
  u32* result;
  const u32* left;
};
struct Fiber {
  State state;
  Request request;
  jmp_buf here;
  ucontext_t first;
  bool begun;
  Dim index;
};
extern Fiber fibers[MOST];
extern int current, count;
void leave(State state);
[[noreturn]] void fail(const char* why);
void* dynamic_shared();

inline u32 ask(Request request) {
  u32 result = 0;
  if (!request.result) request.result = &result;
  fibers[current].request = request;
  leave(IN_WARP);
  return result;
}

template <class T>
T bits_to(u32 bits) {
  T value;
  memcpy(&value, &bits, 4);
  return value;
}
template <class T>
u32 bits_of(T value) {
  static_assert(sizeof(T) == 4, "only 32 bits are shuffled");
  u32 bits;
  memcpy(&bits, &value, 4);
  return bits;
}

typedef void (*Runner)(void**);
template <class... A, size_t... I>
void apply(void (*kernel)(A...), void** given, std::index_sequence<I...>) {
  kernel(*(A*)given[I]...);
}
template <auto kernel>
struct Of;
template <class... A, void (*kernel)(A...)>
struct Of<kernel> {
  static void run(void** given) { apply(kernel, given, std::index_sequence_for<A...>{}); }
  static const int arguments = sizeof...(A);
};
struct Entry {
  const char* name;
  Runner run;
  int arguments;
};
void launch(Runner run, Dim grid, Dim block, size_t shared, void** given);

}  // namespace emulation

static inline void __syncthreads() { emulation::leave(emulation::AT_BARRIER); }
static inline u32 __activemask() { return ~0u; }
template <class T>
T __shfl_down_sync(u32, T value, u32 distance, int) {
  using namespace emulation;
  return bits_to<T>(ask({SHUFFLE_DOWN, false, bits_of(value), distance, 0, nullptr, nullptr}));
}
template <class T>
T __shfl_sync(u32, T value, u32 lane, int) {
  using namespace emulation;
  return bits_to<T>(ask({SHUFFLE, false, bits_of(value), lane, 0, nullptr, nullptr}));
}
template <class A, class B>
auto min(A a, B b) -> decltype(a + b) { return b < a ? b : a; }
template <class A, class B>
auto max(A a, B b) -> decltype(a + b) {
  // of two numbers one of which is NaN, CUDA returns the other
  return a != a ? b : b != b ? a : a < b ? b : a;
}

// --- the instructions: named device functions, whose bodies alone differ from the GPU's
static inline void shiftadd_load16(void* to, const void* from) {
  if ((uintptr_t)from % 16) emulation::fail("a load of 16 bytes that is not aligned");
  memcpy(to, from, 16);
}
static inline void shiftadd_load16_kept(void* to, const void* from) { shiftadd_load16(to, from); }
static inline void shiftadd_prefetch(const void* from, u32 bytes) {
  if ((uintptr_t)from % 16 || bytes % 16) emulation::fail("a prefetch of bytes that are not aligned");
  if (bytes) (void)*(volatile const char*)from, (void)*((volatile const char*)from + bytes - 1);
}
static inline void shiftadd_launch_next() {}
static inline void shiftadd_wait() {}
static inline void shiftadd_load16_written(void* to, const void* from) { shiftadd_load16(to, from); }
static inline void shiftadd_mma_f16(void* to, const void* left, u32 low, u32 high) {
  using namespace emulation;
  ask({MMA_F16, true, 0, low, high, (u32*)to, (const u32*)left});
}
static inline void shiftadd_mma_tf32(void* to, const void* left, float low, float high) {
  using namespace emulation;
  ask({MMA_TF32, true, 0, bits_of(low), bits_of(high), (u32*)to, (const u32*)left});
}
static inline void shiftadd_add_f16(void* to, u32 value) {
  _Float16 a[2], b[2];
  memcpy(a, to, 4), memcpy(b, &value, 4);
  for (int i = 0; i < 2; i++) a[i] = (_Float16)((float)a[i] + (float)b[i]);  // exact before it is rounded
  memcpy(to, a, 4);
}
static inline void shiftadd_mma_b1(void* to, const void* left, u32 low, u32 high) {
  using namespace emulation;
  ask({MMA_B1, true, 0, low, high, (u32*)to, (const u32*)left});
}
static inline void shiftadd_mma_b1_half(void* to, const void* left, u32 right) {
  using namespace emulation;
  ask({MMA_B1_HALF, true, 0, right, 0, (u32*)to, (const u32*)left});
}
static inline void shiftadd_mma_u8(void* to, const void* left, u32 low, u32 high) {
  using namespace emulation;
  ask({MMA_U8, true, 0, low, high, (u32*)to, (const u32*)left});
}
static inline void shiftadd_mma_s8(void* to, const void* left, u32 low, u32 high) {
  using namespace emulation;
  ask({MMA_S8, true, 0, low, high, (u32*)to, (const u32*)left});
}
static inline void shiftadd_add_shuffled(void* to, u32 value, u32 index) {
  using namespace emulation;
  *(u32*)to += ask({SHUFFLE, true, value, index, 0, nullptr, nullptr});
}
static inline void shiftadd_add_across(void* to, u32 mask) {
  using namespace emulation;
  u32 found = ask({SHUFFLE_XOR, true, *(u32*)to, mask, 0, nullptr, nullptr});
  *(u32*)to += found;
}
static inline float floats_across(float value, u32 mask) {
  using namespace emulation;
  return bits_to<float>(ask({SHUFFLE_XOR, true, bits_of(value), mask, 0, nullptr, nullptr}));
}
static inline void shiftadd_add_floats_across(void* to, u32 mask) {
  *(float*)to += floats_across(*(float*)to, mask);
}
static inline void shiftadd_max_floats_across(void* to, u32 mask) {
  *(float*)to = max(*(float*)to, floats_across(*(float*)to, mask));
}
static inline void shiftadd_take_float(void* to, float value, u32 index) {
  using namespace emulation;
  *(float*)to = bits_to<float>(ask({SHUFFLE, true, bits_of(value), index, 0, nullptr, nullptr}));
}
static inline void shiftadd_take_across(void* to, float value, u32 mask) { *(float*)to = floats_across(value, mask); }
static inline void shiftadd_add_lanes(void* to) {
  using namespace emulation;
  *(u32*)to = ask({ADD_LANES, true, *(u32*)to, 0, 0, nullptr, nullptr});
}
static inline void shiftadd_max_lanes(void* to) {
  using namespace emulation;
  *(u32*)to = ask({MAX_LANES, true, *(u32*)to, 0, 0, nullptr, nullptr});
}
static inline void shiftadd_swap_bits(void* to, u32 step, u32 lower) {
  using namespace emulation;
  u32 value = *(u32*)to, found = ask({SHUFFLE_XOR, true, value, step, 0, nullptr, nullptr});
  *(u32*)to = (threadIdx.x & step) ? (value & ~lower) | ((found & ~lower) >> step)
                                   : (value & lower) | ((found & lower) << step);
}
static inline void shiftadd_ballot(void* to, u32 flag) {
  using namespace emulation;
  *(u32*)to = ask({BALLOT, true, flag & 1u, 0, 0, nullptr, nullptr});
}
static inline void shiftadd_add_wide(void* to, int value, u32 places) {
  *(long long*)to += (long long)((unsigned long long)(long long)value << places);
}
static inline void shiftadd_add_float(void* to, float value) { *(float*)to += value; }
static inline void shiftadd_add_shared(void* to, u32 value) { *(u32*)to += value; }
static inline void shiftadd_add_global(void* to, u32 value) { *(u32*)to += value; }
static inline void shiftadd_max_shared(void* to, u32 value) {
  if (value > *(u32*)to) *(u32*)to = value;
}
