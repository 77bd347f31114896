/* Memory from u-dma-buf, a kernel module that reserves a buffer and shows it as a file.
 *
 * Environment, read at the first allocation:
 *   VTA_UDMABUF      the file (/dev/udmabuf0)
 *   VTA_UDMABUF_SYS  the folder with its phys_addr, size and sync files (/sys/class/u-dma-buf/NAME)
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vta_blocks.h"
#include "vta_config.h"

/* How the sync files want a range: whole lines of 16 bytes, and which way the data goes. */
#define LINE 16u
enum { TO_DEVICE = 1, FROM_DEVICE = 2 };

static struct {
  uint8_t *data;
  uint64_t address, bytes;
  /* By which ranges are given to the device, and taken from it. */
  int sync[2];
} buffer;

static void path_of(char *path, size_t size, const char *name) {
  const char *device = getenv("VTA_UDMABUF"), *folder = getenv("VTA_UDMABUF_SYS");
  const char *slash = device == NULL ? NULL : strrchr(device, '/');
  if (folder != NULL) {
    snprintf(path, size, "%s/%s", folder, name);
  } else {
    snprintf(path, size, "/sys/class/u-dma-buf/%s/%s", slash == NULL ? "udmabuf0" : slash + 1, name);
  }
}

static uint64_t number_in(const char *name) {
  char path[512];
  unsigned long long value = 0;
  FILE *file;
  path_of(path, sizeof path, name);
  file = fopen(path, "r");
  if (file == NULL) return 0;
  if (fscanf(file, "%lli", (long long *)&value) != 1) value = 0;
  fclose(file);
  return value;
}

static int open_in(const char *name) {
  char path[512];
  path_of(path, sizeof path, name);
  return open(path, O_WRONLY);
}

static int map_buffer(int cached) {
  const char *device = getenv("VTA_UDMABUF") == NULL ? "/dev/udmabuf0" : getenv("VTA_UDMABUF");
  int file = open(device, cached ? O_RDWR : O_RDWR | O_SYNC);
  void *data;
  if (file < 0) {
    fprintf(stderr, "vta: %s does not open (%s): load the module u-dma-buf with a buffer of that name\n", device,
            strerror(errno));
    return 0;
  }
  buffer.address = number_in("phys_addr");
  buffer.bytes = number_in("size");
  data = buffer.bytes == 0 ? MAP_FAILED
                           : mmap(NULL, (size_t)buffer.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (data == MAP_FAILED || buffer.address == 0) {
    fprintf(stderr, "vta: %s cannot be mapped, or its phys_addr and size are not to be read\n", device);
    return 0;
  }
  buffer.data = data;
  buffer.sync[0] = open_in("sync_for_cpu");
  buffer.sync[1] = open_in("sync_for_device");
  return 1;
}

/* All of them are from one buffer; whether that is cached the first one says. */
int vta_source_take(struct vta_block *block, int cached) {
  if (buffer.data == NULL && !map_buffer(cached)) return 0;
  block->address = vta_blocks_room(buffer.address + VTA_ADDRESS_OFFSET, buffer.address + VTA_ADDRESS_OFFSET + buffer.bytes,
                                   0, block->bytes);
  if (block->address == 0) return 0;
  block->data = buffer.data + (block->address - VTA_ADDRESS_OFFSET - buffer.address);
  return 1;
}

void vta_source_give(const struct vta_block *block) { (void)block; }

void vta_source_sync(const struct vta_block *block, uint64_t offset, uint64_t bytes, int to_device) {
  uint64_t begin = ((uint64_t)(block->data - buffer.data) + offset) / LINE * LINE;
  uint64_t end = (uint64_t)(block->data - buffer.data) + offset + bytes;
  uint64_t size = (end - begin + LINE - 1) / LINE * LINE;
  uint64_t direction = to_device ? TO_DEVICE : FROM_DEVICE;
  char text[32];
  int length = snprintf(text, sizeof text, "0x%08lX%08lX", (unsigned long)begin,
                        (unsigned long)(size | direction << 2 | 1));
  if (pwrite(buffer.sync[to_device != 0], text, (size_t)length, 0) != length)
    fprintf(stderr, "vta: u-dma-buf's %s cannot be written\n", to_device ? "sync_for_device" : "sync_for_cpu");
}
