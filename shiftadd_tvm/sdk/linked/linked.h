// What a single library has linked in, beside libshiftadd and TVM's runtime: compiled functions and files.
// The packager writes the definitions for each model.
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct shiftadd_linked_symbol {
  const char* name;  // by which TVM asks for it
  void* address;
};

struct shiftadd_linked_file {
  const char* name;
  const void* begin;  // a multiple of 64 bytes
  const void* end;
};

extern const struct shiftadd_linked_symbol shiftadd_linked_symbols[] __attribute__((visibility("hidden")));
extern const size_t shiftadd_linked_symbol_count __attribute__((visibility("hidden")));
extern const struct shiftadd_linked_file shiftadd_linked_files[] __attribute__((visibility("hidden")));
extern const size_t shiftadd_linked_file_count __attribute__((visibility("hidden")));

#ifdef __cplusplus
}
#endif
