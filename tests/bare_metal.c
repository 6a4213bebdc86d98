/* What emulated.c needs of an operating system, on a PC that has none: Bochs, see bochs.py.
 *
 * The kernel's name and its operands lie in memory, loaded with the program; results leave by the
 * printer's port, messages by Bochs' console. All is well if the machine is shut down.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PRINTER = 0x378, CONTROL = 0x37A, CONSOLE = 0xE9, POWER = 0x8900 };
enum { READY = 12, STROBE = 1, NAME = 256 };

struct _IO_FILE {
  const unsigned char* next;
};
static FILE operands, results, console;
FILE* const stderr = &console;
static uintptr_t heap = 64 << 20; /* above the stack of bare_metal.S */
static const uintptr_t heap_end = 256 << 20;

int main(int count, char** words);

static void out(uint16_t port, uint8_t value) {
  __asm__ volatile("outb %0, %1" ::"a"(value), "d"(port));
}

void exit(int status) {
  for (const char* word = "Shutdown"; !status && *word; ++word) out(POWER, *word);
  for (;;) __asm__ volatile("ud2"); /* no handler: the emulator gives up, and says so */
}

FILE* fopen(const char* path, const char* mode) {
  return *mode == 'r' ? &operands : &results;
}

int fclose(FILE* file) { return 0; }

size_t fread(void* target, size_t size, size_t count, FILE* file) {
  memcpy(target, file->next, size * count);
  file->next += size * count;
  return count;
}

size_t fwrite(const void* source, size_t size, size_t count, FILE* file) {
  for (const uint8_t *byte = source, *end = byte + size * count; byte < end; ++byte) {
    out(file == &results ? PRINTER : CONSOLE, *byte);
    if (file != &results) continue;
    out(CONTROL, READY | STROBE);
    out(CONTROL, READY);
  }
  return count;
}

int fputs(const char* text, FILE* file) {
  fwrite(text, 1, strlen(text), file);
  return 0;
}

void* aligned_alloc(size_t alignment, size_t bytes) {
  uintptr_t found = (heap + alignment - 1) / alignment * alignment;
  heap = found + bytes;
  return heap > heap_end ? NULL : (void*)found;
}

void free(void* pointer) {}

void boot(char* loaded) {
  char* words[] = {"emulated", loaded, "operands", "results"};
  operands.next = (const unsigned char*)loaded + NAME;
  exit(main(4, words));
}
