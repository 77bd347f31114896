/* VTA's memory functions, over what a library has its memory from. */
#ifndef VTA_BLOCKS_H
#define VTA_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

#define VTA_PAGE 4096u

/* An allocation: its bytes as this process sees them, their address as VTA does, and what the source knows it by. */
struct vta_block {
  uint8_t *data;
  uint64_t address, bytes;
  void *handle;
  struct vta_block *next;
};

/* What a source of memory offers. `take` fills in data, address and handle of a block of `bytes`, whole pages, and says
 * whether it could; `sync` writes a range back to memory, or drops it from the cache. */
int vta_source_take(struct vta_block *block, int cached);
void vta_source_give(const struct vta_block *block);
void vta_source_sync(const struct vta_block *block, uint64_t offset, uint64_t bytes, int to_device);

/* The bytes at an address, NULL unless one allocation has them all. */
uint8_t *vta_blocks_span(uint64_t address, uint64_t bytes);

/* The allocation that this process sees at `data`, NULL if there is none. */
const struct vta_block *vta_blocks_holding(const uint8_t *data);

/* The lowest address from `begin` on where `bytes` fit before `end`, `gap` bytes apart from others; 0 if there is none
 * (`begin` is above 0). */
uint64_t vta_blocks_room(uint64_t begin, uint64_t end, uint64_t gap, uint64_t bytes);

/* The number that an environment variable holds, in C's notation, or another one without it. */
uint64_t vta_number(const char *name, uint64_t otherwise);

#endif
