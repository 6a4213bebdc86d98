// The threads behind cuda_emulated.h: fibers, barriers, and what a warp does together.
#include "cuda_emulated.h"

Dim threadIdx, blockIdx, blockDim, gridDim;

#ifndef FRAGMENT_ROW  // a test puts a wrong map here, which must not go unnoticed
#define FRAGMENT_ROW(lane, r) ((lane) / 4 + 8 * ((r) & 1))
#endif

namespace emulation {

Fiber fibers[MOST];
int current, count;
static jmp_buf scheduler;
static ucontext_t starter;
static Runner kernel;
static void** arguments;
static unsigned char* shared_memory;
// In which order threads and blocks run: the other way round at every other launch, and threads at every
// other block. Between two barriers each thread is so before each other one at some time.
#ifndef BEGIN_BACKWARD
#define BEGIN_BACKWARD false
#endif
static bool backward = BEGIN_BACKWARD;

void fail(const char* why) {
  fprintf(stderr, "emulated GPU: %s\n", why);
  fflush(stderr);
  _Exit(86);
}

void* dynamic_shared() { return shared_memory; }

void leave(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  if (!_setjmp(fiber.here)) _longjmp(scheduler, 1);
}

static void body() {
  for (;;) {
    kernel(arguments);
    leave(DONE);
  }
}

static void enter(int index) {
  Fiber& fiber = fibers[index];
  current = index;
  threadIdx = fiber.index;
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  static char* stacks = (char*)mmap(nullptr, (size_t)STACK * MOST, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  getcontext(&fiber.first);
  fiber.first.uc_stack.ss_sp = stacks + (size_t)STACK * index;
  fiber.first.uc_stack.ss_size = STACK;
  fiber.first.uc_link = &starter;
  makecontext(&fiber.first, body, 0);
  setcontext(&fiber.first);
}

// m16n8k256, or m16n8k128 of 4 words: d (16 x 8) += popcount(a AND b); the maps of the PTX ISA's fragments
static void multiply(Request* lanes[LANES], int words) {
  u32 a[16][8], b[8][8];
  for (int l = 0; l < LANES; l++) {
    for (int r = 0; r < words / 2; r++) a[FRAGMENT_ROW(l, r)][l % 4 + 4 * (r >> 1)] = lanes[l]->left[r];
    b[l % 4][l / 4] = lanes[l]->index;
    if (words == 8) b[l % 4 + 4][l / 4] = lanes[l]->high;
  }
  for (int l = 0; l < LANES; l++)
    for (int r = 0; r < 4; r++) {
      u32 total = 0;
      for (int k = 0; k < words; k++)
        total += __builtin_popcount(a[l / 4 + 8 * (r >> 1)][k] & b[k][l % 4 * 2 + (r & 1)]);
      lanes[l]->result[r] += total;
    }
}

// m16n8k16: d (16 x 8) += a (16 x 16) b (16 x 8), two numbers of a word; the maps of the PTX ISA's fragments
static void multiply_halves(Request* lanes[LANES]) {
  _Float16 a[16][16], b[16][8];
  for (int l = 0; l < LANES; l++) {
    for (int r = 0; r < 4; r++) memcpy(&a[FRAGMENT_ROW(l, r)][l % 4 * 2 + 8 * (r >> 1)], &lanes[l]->left[r], 4);
    u32 right[2] = {lanes[l]->index, lanes[l]->high};
    for (int r = 0; r < 4; r++) memcpy(&b[l % 4 * 2 + r % 2 + 8 * (r >> 1)][l / 4], (char*)right + 2 * r, 2);
  }
  for (int l = 0; l < LANES; l++)
    for (int r = 0; r < 4; r++) {
      float* sum = (float*)lanes[l]->result + r;
      for (int k = 0; k < 16; k++) *sum += (float)a[l / 4 + 8 * (r >> 1)][k] * (float)b[k][l % 4 * 2 + (r & 1)];
    }
}

// m16n8k8: d (16 x 8) += a (16 x 8) b (8 x 8), float32 without its 13 lowest bits; the maps of the PTX ISA
static void multiply_floats(Request* lanes[LANES]) {
  float a[16][8], b[8][8];
  auto cut = [](u32 bits) { return bits_to<float>(bits & 0xffffe000u); };
  for (int l = 0; l < LANES; l++) {
    for (int r = 0; r < 4; r++) a[FRAGMENT_ROW(l, r)][l % 4 + 4 * (r >> 1)] = cut(lanes[l]->left[r]);
    b[l % 4][l / 4] = cut(lanes[l]->index);
    b[l % 4 + 4][l / 4] = cut(lanes[l]->high);
  }
  for (int l = 0; l < LANES; l++)
    for (int r = 0; r < 4; r++) {
      float* sum = (float*)lanes[l]->result + r;
      for (int k = 0; k < 8; k++) *sum += a[l / 4 + 8 * (r >> 1)][k] * b[k][l % 4 * 2 + (r & 1)];
    }
}

// m16n8k32: d (16 x 8) += a (16 x 32) b (32 x 8), four bytes of a word; the maps of the PTX ISA's fragments
static void multiply_bytes(Request* lanes[LANES], bool negative) {
  uint8_t a[16][32], b[8][32];
  for (int l = 0; l < LANES; l++) {
    for (int r = 0; r < 4; r++) memcpy(&a[FRAGMENT_ROW(l, r)][l % 4 * 4 + 16 * (r >> 1)], &lanes[l]->left[r], 4);
    memcpy(&b[l / 4][l % 4 * 4], &lanes[l]->index, 4);
    memcpy(&b[l / 4][l % 4 * 4 + 16], &lanes[l]->high, 4);
  }
  for (int l = 0; l < LANES; l++)
    for (int r = 0; r < 4; r++)
      for (int k = 0; k < 32; k++) {
        int right = b[l % 4 * 2 + (r & 1)][k];
        lanes[l]->result[r] += (u32)(a[l / 4 + 8 * (r >> 1)][k] * (negative ? (int8_t)right : right));
      }
}

static void resolve(int first) {
  Request* lanes[LANES] = {};
  int present = 0, some = -1;
  for (int l = 0; l < LANES && first + l < count; l++)
    if (fibers[first + l].state == IN_WARP) lanes[l] = &fibers[first + l].request, some = l, present++;
  Kind kind = lanes[some]->kind;
  u32 votes = 0, sum = 0, largest = 0;
  for (int l = 0; l < LANES; l++) {
    if (!lanes[l]) continue;
    if (lanes[l]->kind != kind) fail("lanes of a warp meet in different operations");
    if (lanes[l]->all && present < LANES) fail("an operation of a whole warp without all its lanes");
    votes |= lanes[l]->value << l, sum += lanes[l]->value;
    if (lanes[l]->value > largest) largest = lanes[l]->value;
  }
  if (kind == MMA_B1) multiply(lanes, 8);
  if (kind == MMA_B1_HALF) multiply(lanes, 4);
  if (kind == MMA_F16) multiply_halves(lanes);
  if (kind == MMA_TF32) multiply_floats(lanes);
  if (kind == MMA_U8 || kind == MMA_S8) multiply_bytes(lanes, kind == MMA_S8);
  for (int l = 0; l < LANES; l++) {
    if (!lanes[l]) continue;
    int from = l, index = (int)(lanes[l]->index % LANES);
    if (kind == SHUFFLE) from = index;
    if (kind == SHUFFLE_XOR) from = l ^ index;
    if (kind == SHUFFLE_DOWN) from = l + index < LANES ? l + index : l;
    if (kind == BALLOT) *lanes[l]->result = votes;
    else if (kind == ADD_LANES) *lanes[l]->result = sum;
    else if (kind == MAX_LANES) *lanes[l]->result = largest;
    // what a lane that takes no part holds is undefined
    else if (kind < MMA_B1) *lanes[l]->result = lanes[from] ? lanes[from]->value : 0xdeadbeef;
  }
  for (int l = 0; l < LANES; l++)
    if (lanes[l]) fibers[first + l].state = READY;
}

static void run_warp(int first, bool turned) {
  for (;;) {
    int waiting = 0;
    for (int i = 0; i < LANES; i++) {
      const int at = first + (turned ? i : LANES - 1 - i);
      if (at < count && fibers[at].state == READY) enter(at);
    }
    for (int l = 0; l < LANES && first + l < count; l++)
      waiting += fibers[first + l].state == IN_WARP;
    if (!waiting) return;
    resolve(first);
  }
}

static void run_block() {
  for (int i = 0; i < count; i++) fibers[i].state = READY;
  for (;;) {
    int waiting = 0, done = 0;
    const int last = (count - 1) / LANES * LANES;
    const bool turned = backward ^ (blockIdx.x & 1);
    for (int first = 0; first < count; first += LANES) run_warp(turned ? last - first : first, turned);
    for (int i = 0; i < count; i++) waiting += fibers[i].state == AT_BARRIER, done += fibers[i].state == DONE;
    if (done == count) return;
    if (done) fail("a barrier that some threads have left behind");
    for (int i = 0; i < count; i++) fibers[i].state = READY;
  }
}

static size_t room() {  // bytes that a block may ask for
  const char* arch = getenv("SHIFTADD_EMULATED_ARCH");
  const int version = arch ? atoi(arch) : 90;
  return (version == 80 ? 163 : version == 90 || version == 100 ? 227 : 99) << 10;
}

void launch(Runner run, Dim grid, Dim block, size_t shared, void** given) {
  if (block.x * block.y * block.z > (unsigned)MOST) fail("a block of more than 1024 threads");
  if (shared > room()) fail("more dynamic shared memory than the GPU has");
  if (!shared_memory) shared_memory = (unsigned char*)aligned_alloc(256, 256 << 10);
  kernel = run, arguments = given, blockDim = block, gridDim = grid;
  count = block.x * block.y * block.z;
  for (int i = 0; i < count; i++)
    fibers[i].index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
  const unsigned blocks = grid.x * grid.y * grid.z;
  for (unsigned i = 0; i < blocks; i++) {
    const unsigned at = backward ? blocks - 1 - i : i;
    blockIdx = {at % grid.x, at / grid.x % grid.y, at / (grid.x * grid.y)};
    memset(shared_memory, 0xA5, shared);  // nobody may count on zeros
    run_block();
  }
  backward = !backward;
}

}  // namespace emulation
