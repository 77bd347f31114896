/* Memory from XRT, the runtime that PYNQ 2.7 and later build theirs on; its library is loaded when it is needed.
 *
 * Environment, read at the first allocation:
 *   VTA_XRT         the library (libxrt_coreutil.so)
 *   VTA_XRT_DEVICE  number of the device (0)
 *   VTA_XRT_BANK    memory bank (0)
 */
#define _POSIX_C_SOURCE 200809L

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vta_blocks.h"
#include "vta_config.h"

/* As in XRT's xrt_mem.h and xrt_bo.h. */
#define CACHEABLE (UINT64_C(1) << 24)
enum { TO_DEVICE = 0, FROM_DEVICE = 1 };

static struct {
  void *device;
  void *(*open)(unsigned int);
  void *(*alloc)(void *, size_t, uint64_t, uint32_t);
  int (*release)(void *);
  void *(*map)(void *);
  uint64_t (*address)(void *);
  int (*sync)(void *, int, size_t, size_t);
} xrt;

/* dlsym's pointer to data, as one to a function. */
static int find(void *library, const char *name, void *function) {
  void *symbol = dlsym(library, name);
  if (symbol == NULL) fprintf(stderr, "vta: XRT's library lacks %s\n", name);
  memcpy(function, &symbol, sizeof symbol);
  return symbol != NULL;
}

static int open_device(void) {
  const char *name = getenv("VTA_XRT") == NULL ? "libxrt_coreutil.so" : getenv("VTA_XRT");
  void *library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
  if (library == NULL) {
    fprintf(stderr, "vta: XRT does not load (%s): install it, or name its library in VTA_XRT\n", dlerror());
    return 0;
  }
  if (!find(library, "xrtDeviceOpen", &xrt.open) || !find(library, "xrtBOAlloc", &xrt.alloc) ||
      !find(library, "xrtBOFree", &xrt.release) || !find(library, "xrtBOMap", &xrt.map) ||
      !find(library, "xrtBOAddress", &xrt.address) || !find(library, "xrtBOSync", &xrt.sync))
    return 0;
  xrt.device = xrt.open((unsigned int)vta_number("VTA_XRT_DEVICE", 0));
  if (xrt.device == NULL) fprintf(stderr, "vta: XRT gives no device; is an overlay loaded?\n");
  return xrt.device != NULL;
}

int vta_source_take(struct vta_block *block, int cached) {
  if (xrt.device == NULL && !open_device()) return 0;
  block->handle = xrt.alloc(xrt.device, (size_t)block->bytes, cached ? CACHEABLE : 0,
                            (uint32_t)vta_number("VTA_XRT_BANK", 0));
  if (block->handle == NULL) return 0;
  block->data = xrt.map(block->handle);
  block->address = xrt.address(block->handle) + VTA_ADDRESS_OFFSET;
#ifndef USE_VTA64
  if (block->address + block->bytes > UINT64_C(0x100000000)) {
    fprintf(stderr, "vta: XRT gives memory at 0x%llx, out of reach of 32-bit addresses\n",
            (unsigned long long)block->address);
    xrt.release(block->handle);
    return 0;
  }
#endif
  return block->data != NULL;
}

void vta_source_give(const struct vta_block *block) { xrt.release(block->handle); }

void vta_source_sync(const struct vta_block *block, uint64_t offset, uint64_t bytes, int to_device) {
  if (xrt.sync(block->handle, to_device ? TO_DEVICE : FROM_DEVICE, (size_t)bytes, (size_t)offset) != 0)
    fprintf(stderr, "vta: XRT does not synchronise %lu bytes\n", (unsigned long)bytes);
}
