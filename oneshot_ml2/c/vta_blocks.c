/* Allocations by address. See vta_blocks.h; VTAMem* are those of VTA's driver interface. */
#include "vta_blocks.h"

#include <stdlib.h>
#include <string.h>

#include "vta_driver.h"

/* In the order of their addresses. */
static struct vta_block *blocks;

uint64_t vta_number(const char *name, uint64_t otherwise) {
  const char *text = getenv(name);
  return text != NULL && *text != '\0' ? strtoull(text, NULL, 0) : otherwise;
}

const struct vta_block *vta_blocks_holding(const uint8_t *data) {
  for (const struct vta_block *one = blocks; one != NULL; one = one->next) {
    if (data >= one->data && data < one->data + one->bytes) return one;
  }
  return NULL;
}

uint8_t *vta_blocks_span(uint64_t address, uint64_t bytes) {
  for (const struct vta_block *one = blocks; one != NULL; one = one->next) {
    if (address < one->address || address - one->address > one->bytes) continue;
    return bytes <= one->bytes - (address - one->address) ? one->data + (address - one->address) : NULL;
  }
  return NULL;
}

uint64_t vta_blocks_room(uint64_t begin, uint64_t end, uint64_t gap, uint64_t bytes) {
  for (const struct vta_block *one = blocks; one != NULL; one = one->next) {
    uint64_t after = one->address + one->bytes + gap;
    if (one->address >= begin && one->address - begin >= bytes + gap) break;
    begin = after > begin ? after : begin;
  }
  return begin <= end && bytes <= end - begin ? begin : 0;
}

void *VTAMemAlloc(size_t size, int cached) {
  struct vta_block **place = &blocks, *made;
  if (size == 0 || size > SIZE_MAX - VTA_PAGE) return NULL;
  made = calloc(1, sizeof *made);
  if (made == NULL) return NULL;
  made->bytes = ((uint64_t)size + VTA_PAGE - 1) / VTA_PAGE * VTA_PAGE;
  if (!vta_source_take(made, cached)) {
    free(made);
    return NULL;
  }
  while (*place != NULL && (*place)->address < made->address) place = &(*place)->next;
  made->next = *place;
  *place = made;
  return made->data;
}

void VTAMemFree(void *buffer) {
  for (struct vta_block **place = &blocks; *place != NULL; place = &(*place)->next) {
    struct vta_block *one = *place;
    if (one->data != (uint8_t *)buffer) continue;
    *place = one->next;
    vta_source_give(one);
    free(one);
    return;
  }
}

vta_phy_addr_t VTAMemGetPhyAddr(void *buffer) {
  const struct vta_block *one = vta_blocks_holding(buffer);
  return one == NULL ? 0 : (vta_phy_addr_t)(one->address + (uint64_t)((uint8_t *)buffer - one->data));
}

void VTAMemCopyFromHost(void *target, const void *source, size_t size) { memcpy(target, source, size); }

void VTAMemCopyToHost(void *target, const void *source, size_t size) { memcpy(target, source, size); }

static void sync_range(void *buffer, int size, int to_device) {
  const struct vta_block *one = vta_blocks_holding(buffer);
  if (one != NULL && size > 0) vta_source_sync(one, (uint64_t)((uint8_t *)buffer - one->data), (uint64_t)size, to_device);
}

void VTAFlushCache(void *buffer, vta_phy_addr_t address, int size) {
  (void)address;
  sync_range(buffer, size, 1);
}

void VTAInvalidateCache(void *buffer, vta_phy_addr_t address, int size) {
  (void)address;
  sync_range(buffer, size, 0);
}
