#include "processor.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace shiftadd::internal {
namespace {

#if defined(__x86_64__)

constexpr const char kMachine[] = "x86_64";

enum Register { kA, kB, kC, kD };
enum State { kAny, kAvx, kAvx512 };  // what the system must save for the feature to be usable

struct Feature {
  std::string_view name;
  unsigned leaf, subleaf;
  Register reg;
  int bit;
  State state;
};

constexpr Feature kFeatures[] = {
    {"ssse3", 1, 0, kC, 9, kAny},          {"sse4_1", 1, 0, kC, 19, kAny},
    {"sse4_2", 1, 0, kC, 20, kAny},        {"popcnt", 1, 0, kC, 23, kAny},
    {"avx", 1, 0, kC, 28, kAvx},           {"f16c", 1, 0, kC, 29, kAvx},
    {"fma", 1, 0, kC, 12, kAvx},           {"bmi1", 7, 0, kB, 3, kAny},
    {"avx2", 7, 0, kB, 5, kAvx},           {"bmi2", 7, 0, kB, 8, kAny},
    {"avx512f", 7, 0, kB, 16, kAvx512},    {"avx512dq", 7, 0, kB, 17, kAvx512},
    {"avx512bw", 7, 0, kB, 30, kAvx512},   {"avx512vl", 7, 0, kB, 31, kAvx512},
    {"avx512vbmi", 7, 0, kC, 1, kAvx512},  {"avx512_vbmi2", 7, 0, kC, 6, kAvx512},
    {"gfni", 7, 0, kC, 8, kAny},           {"avx512_vnni", 7, 0, kC, 11, kAvx512},
    {"avx_vnni", 7, 1, kA, 4, kAvx},       {"avx512_bf16", 7, 1, kA, 5, kAvx512},
};

unsigned value(unsigned leaf, unsigned subleaf, Register reg) {
  unsigned registers[4] = {};
  if (!__get_cpuid_count(leaf, subleaf, &registers[0], &registers[1], &registers[2], &registers[3])) return 0;
  return registers[reg];
}

bool saves(State state) {
  if (state == kAny) return true;
  if (!(value(1, 0, kC) >> 27 & 1)) return false;  // no xgetbv, so no more than SSE
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const unsigned wanted = state == kAvx ? 0x06 : 0xE6;
  return (low & wanted) == wanted;
}

bool known_feature(std::string_view name, bool& present) {
  for (const Feature& f : kFeatures) {
    if (f.name != name) continue;
    present = (value(f.leaf, f.subleaf, f.reg) >> f.bit & 1) && saves(f.state);
    return true;
  }
  return false;
}

#elif defined(__aarch64__)

constexpr const char kMachine[] = "aarch64";

struct Feature {
  std::string_view name;
  unsigned long type;  // of the auxiliary vector
  int bit;
};

constexpr Feature kFeatures[] = {
    {"fp", AT_HWCAP, 0},       {"asimd", AT_HWCAP, 1},     {"crc32", AT_HWCAP, 7},
    {"atomics", AT_HWCAP, 8},  {"asimdhp", AT_HWCAP, 10},  {"asimdrdm", AT_HWCAP, 12},
    {"jscvt", AT_HWCAP, 13},   {"fcma", AT_HWCAP, 14},     {"lrcpc", AT_HWCAP, 15},
    {"asimddp", AT_HWCAP, 20}, {"sve", AT_HWCAP, 22},      {"sve2", AT_HWCAP2, 1},
    {"i8mm", AT_HWCAP2, 13},   {"bf16", AT_HWCAP2, 14},
};

bool known_feature(std::string_view name, bool& present) {
  for (const Feature& f : kFeatures) {
    if (f.name != name) continue;
    present = getauxval(f.type) >> f.bit & 1;
    return true;
  }
  return false;
}

#else
#error "libshiftadd runs on x86-64 and on 64-bit ARM"
#endif

// Whether Linux lists a feature that the tables above do not know.
bool listed_feature(std::string_view name) {
  // not by a stream: where zig links its own C++ library, they would be half a megabyte
  std::FILE* file = std::fopen("/proc/cpuinfo", "r");
  if (!file) return false;
  char word[256];
  bool found = false;
  while (!found && std::fscanf(file, "%255s", word) == 1) found = name == word;
  std::fclose(file);
  return found;
}

}  // namespace

std::string_view machine() { return kMachine; }

bool has_feature(std::string_view name) {
  bool present = false;
  return known_feature(name, present) ? present : listed_feature(name);
}

int usable_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(CPU_COUNT(&set), 1);
  return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
}

}  // namespace shiftadd::internal
