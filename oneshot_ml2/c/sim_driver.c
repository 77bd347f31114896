/* VTA's driver interface in front of the simulator: memory with physical addresses, and faults on demand.
 *
 * Environment, read when a device is made:
 *   VTA_FAULT     kind/n,...: every n-th run of the process has a fault of that kind (below)
 *   VTA_BROKEN    name,...: what the device gets wrong in every run (below)
 *   VTA_LATE_MS   how long after its end a late run says that it is done (200)
 *   VTA_LIMIT_MS  CPU time that a run may take (60000)
 * and when memory is allocated:
 *   VTA_SIM_BASE     physical address of the first page (4096)
 *   VTA_SIM_LARGEST  bytes that one allocation may have at most (no limit)
 */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vta_blocks.h"
#include "vta_config.h"
#include "vta_driver.h"
#include "vta_sim.h"

/* What one look for the end stands for, in work of the simulator. */
#define WORK_OF_A_LOOK 1024u

#ifdef USE_VTA64
#define LAST_ADDRESS UINT64_MAX
#else
#define LAST_ADDRESS UINT64_C(0xffffffff)
#endif

/* What a run with a fault does: never returns; ends the process; leaves a wrong byte; says late that it is done; says so
 * and has not begun; loses a token. */
enum fault { HANG, CRASH, WRONG, LATE, STALE, TOKEN, FAULTS };
static const char *const FAULT_NAME[FAULTS] = {"hang", "crash", "wrong", "late", "stale", "token"};

/* What VTA_BROKEN may name: the bits of enum vta_broken, and two of the driver. Of the memory the device sees what the
 * host has flushed or not yet touched twice, and the host what it has invalidated; and a run whose first instruction is
 * none of compute's finds the DONE of the run before. */
enum { BROKEN_CACHE = 1u << 16, BROKEN_DONE = 1u << 17 };
static const struct {
  const char *name;
  unsigned bit;
} BREAKS[] = {
    {"pads", VTA_BROKEN_PADS},   {"strides", VTA_BROKEN_STRIDES}, {"outer-weight", VTA_BROKEN_OUTER_WEIGHT},
    {"shift", VTA_BROKEN_SHIFT}, {"reset", VTA_BROKEN_RESET},     {"tokens", VTA_BROKEN_TOKENS},
    {"distance", VTA_BROKEN_DISTANCE}, {"cache", BROKEN_CACHE},   {"done", BROKEN_DONE},
};

/* Of the device; memory asks for it, too. */
static unsigned broken;

/* Memory -------------------------------------------------------------------------------------- */

/* What the device sees of a block whose cache is not kept coherent: its bytes, and whether it has looked at them. */
struct shadow {
  uint8_t *dram;
  int looked;
};

static struct shadow *new_shadow(uint64_t bytes) {
  struct shadow *shadow = calloc(1, sizeof *shadow);
  if (shadow == NULL) return NULL;
  shadow->dram = calloc(1, (size_t)bytes);
  if (shadow->dram != NULL) return shadow;
  free(shadow);
  return NULL;
}

/* A page that nothing has lies between two allocations. */
int vta_source_take(struct vta_block *block, int cached) {
  uint64_t largest = vta_number("VTA_SIM_LARGEST", LAST_ADDRESS);
  void *data;
  (void)cached;
  block->address = vta_blocks_room(vta_number("VTA_SIM_BASE", VTA_PAGE), LAST_ADDRESS, VTA_PAGE, block->bytes);
  if (block->bytes > largest || block->address == 0) return 0;
  if (posix_memalign(&data, VTA_PAGE, (size_t)block->bytes) != 0) return 0;
  memset(data, 0, (size_t)block->bytes);
  block->data = data;
  if (!(broken & BROKEN_CACHE)) return 1;
  block->handle = new_shadow(block->bytes);
  if (block->handle != NULL) return 1;
  free(data);
  return 0;
}

void vta_source_give(const struct vta_block *block) {
  struct shadow *shadow = block->handle;
  if (shadow != NULL) free(shadow->dram);
  free(shadow);
  free(block->data);
}

void vta_source_sync(const struct vta_block *block, uint64_t offset, uint64_t bytes, int to_device) {
  struct shadow *shadow = block->handle;
  if (shadow == NULL) return;
  if (to_device) {
    memcpy(shadow->dram + offset, block->data + offset, (size_t)bytes);
  } else {
    memcpy(block->data + offset, shadow->dram + offset, (size_t)bytes);
  }
}

static uint8_t *span(void *context, uint64_t address, uint64_t bytes) {
  uint8_t *data = vta_blocks_span(address, bytes);
  const struct vta_block *block = data == NULL ? NULL : vta_blocks_holding(data);
  struct shadow *shadow = block == NULL ? NULL : block->handle;
  (void)context;
  if (shadow == NULL) return data;
  /* What was written long ago has left the cache. */
  if (!shadow->looked) memcpy(shadow->dram, block->data, (size_t)block->bytes);
  shadow->looked = 1;
  return shadow->dram + (data - block->data);
}

/* The device ---------------------------------------------------------------------------------- */

struct device {
  struct vta_sim *sim;
  unsigned long every[FAULTS], late_ms, limit_ms;
  const char *error;
};

/* Runs of this process. */
static unsigned long runs;

/* Read VTA_FAULT; 0 if it is not of its form. */
static int read_faults(struct device *device) {
  const char *text = getenv("VTA_FAULT");
  while (text != NULL && *text != '\0') {
    int kind = 0;
    size_t length = strcspn(text, "/,");
    char *end;
    while (kind < FAULTS && (strlen(FAULT_NAME[kind]) != length || strncmp(text, FAULT_NAME[kind], length) != 0)) kind++;
    if (kind == FAULTS || text[length] != '/') return 0;
    device->every[kind] = strtoul(text + length + 1, &end, 10);
    if (end == text + length + 1 || (*end != ',' && *end != '\0')) return 0;
    text = *end == ',' ? end + 1 : end;
  }
  return 1;
}

/* Read VTA_BROKEN; 0 if it names something else. */
static int read_broken(void) {
  const char *text = getenv("VTA_BROKEN");
  const size_t count = sizeof BREAKS / sizeof BREAKS[0];
  broken = 0;
  while (text != NULL && *text != '\0') {
    size_t kind = 0, length = strcspn(text, ",");
    while (kind < count && (strlen(BREAKS[kind].name) != length || strncmp(text, BREAKS[kind].name, length) != 0)) {
      kind++;
    }
    if (kind == count) return 0;
    broken |= BREAKS[kind].bit;
    text += text[length] == ',' ? length + 1 : length;
  }
  return 1;
}

VTADeviceHandle VTADeviceAlloc(void) {
  struct device *device = calloc(1, sizeof *device);
  if (device == NULL) return NULL;
  device->sim = vta_sim_new();
  device->late_ms = (unsigned long)vta_number("VTA_LATE_MS", 200);
  device->limit_ms = (unsigned long)vta_number("VTA_LIMIT_MS", 60000);
  device->error = "";
  if (device->sim == NULL) {
    free(device);
    return NULL;
  }
  if (!read_faults(device)) {
    fprintf(stderr, "VTA_FAULT is %s; allowed: kind/n,...\n", getenv("VTA_FAULT"));
    VTADeviceFree(device);
    return NULL;
  }
  if (!read_broken()) {
    fprintf(stderr, "VTA_BROKEN is %s; allowed: names,... as docs/doctor.md lists them\n", getenv("VTA_BROKEN"));
    VTADeviceFree(device);
    return NULL;
  }
  return device;
}

void VTADeviceFree(VTADeviceHandle handle) {
  struct device *device = handle;
  if (device == NULL) return;
  if (device->sim != NULL) vta_sim_free(device->sim);
  free(device);
}

static void pause_ms(unsigned long ms) {
  struct timespec time;
  time.tv_sec = (time_t)(ms / 1000);
  time.tv_nsec = (long)(ms % 1000) * 1000000L;
  nanosleep(&time, NULL);
}

static int run_now(struct device *device, vta_phy_addr_t insns, uint32_t count, uint32_t wait, const int *has) {
  const struct vta_memory memory = {span, NULL};
  struct vta_run run;
  enum vta_status status;
  memset(&run, 0, sizeof run);
  run.work = (uint64_t)wait * WORK_OF_A_LOOK;
  run.seconds = (double)device->limit_ms / 1000.0;
  run.lost_push = has[TOKEN] ? 1 : 0;
  run.broken = broken & (BROKEN_CACHE - 1);
  status = vta_sim_run(device->sim, &memory, insns, count, &run);
  device->error = vta_sim_error(device->sim);
  if (status != VTA_SIM_DONE) fprintf(stderr, "vta: %s\n", device->error);
  if (has[WRONG] && run.stored_bytes > 0) run.stored[0] ^= 1;
  if (status == VTA_SIM_BAD) return VTA_RUN_REFUSED;
  return status == VTA_SIM_DONE ? VTA_RUN_DONE : VTA_RUN_TIMEOUT;
}

/* Whether the first instruction is one of load's or store's: LOAD (0) of WGT (1) or INP (2), or STORE (1). */
static int begins_beside(vta_phy_addr_t insns) {
  const uint8_t *bytes = vta_blocks_span(insns, 16);
  unsigned opcode = bytes == NULL ? 0u : bytes[0] & 7u, memory = bytes == NULL ? 0u : (bytes[0] >> 7 | bytes[1] << 1) & 7u;
  return opcode == 1 || (opcode == 0 && (memory == 1 || memory == 2));
}

int VTADeviceRun(VTADeviceHandle handle, vta_phy_addr_t insns, uint32_t count, uint32_t wait) {
  struct device *device = handle;
  int has[FAULTS], result;
  runs++;
  for (int kind = 0; kind < FAULTS; kind++) has[kind] = device->every[kind] > 0 && runs % device->every[kind] == 0;
  if (has[CRASH]) abort();
  while (has[HANG]) pause_ms(1000);
  device->error = "";
  if (has[STALE] || (broken & BROKEN_DONE && runs > 1 && begins_beside(insns))) return VTA_RUN_DONE;
  result = run_now(device, insns, count, wait, has);
  if (has[LATE]) pause_ms(device->late_ms);
  return result;
}

const char *VTAConfiguration(void) { return VTA_CONFIGURATION; }

const char *VTADeviceError(VTADeviceHandle handle) { return ((struct device *)handle)->error; }

uint64_t VTADeviceCycles(VTADeviceHandle handle) {
  (void)handle;
  return 0;
}
