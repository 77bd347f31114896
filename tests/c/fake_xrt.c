/* The part of XRT's library that drivers use: buffers in this process, from the address FAKE_XRT_BASE on. */
#define _POSIX_C_SOURCE 200809L

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct buffer {
  void *data;
  uint64_t address;
};

static uint64_t next;

static void note(const char *what, unsigned long a, unsigned long b, unsigned long c) {
  FILE *file = getenv("FAKE_XRT_LOG") == NULL ? NULL : fopen(getenv("FAKE_XRT_LOG"), "a");
  if (file == NULL) return;
  fprintf(file, "%s %lu %lu %lu\n", what, a, b, c);
  fclose(file);
}

void *xrtDeviceOpen(unsigned int index) {
  static int device;
  note("open", index, 0, 0);
  return &device;
}

void *xrtBOAlloc(void *device, size_t size, uint64_t flags, uint32_t bank) {
  struct buffer *made = malloc(sizeof *made);
  (void)device;
  if (made == NULL || posix_memalign(&made->data, 4096, size) != 0) return NULL;
  if (next == 0) next = getenv("FAKE_XRT_BASE") == NULL ? 0x20000000 : strtoull(getenv("FAKE_XRT_BASE"), NULL, 0);
  made->address = next;
  next += size + 4096;
  note("alloc", (unsigned long)size, (unsigned long)(flags >> 24), bank);
  return made;
}

int xrtBOFree(void *handle) {
  note("free", 0, 0, 0);
  free(((struct buffer *)handle)->data);
  free(handle);
  return 0;
}

void *xrtBOMap(void *handle) { return ((struct buffer *)handle)->data; }

uint64_t xrtBOAddress(void *handle) { return ((struct buffer *)handle)->address; }

int xrtBOSync(void *handle, int direction, size_t size, size_t offset) {
  (void)handle;
  note("sync", (unsigned long)direction, (unsigned long)size, (unsigned long)offset);
  return 0;
}
