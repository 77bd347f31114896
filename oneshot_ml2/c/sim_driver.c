/* VTA's driver interface in front of the simulator: memory with physical addresses, and faults on demand.
 *
 * Environment, read when a device is made:
 *   VTA_FAULT     kind/n,...: every n-th run of the process has a fault of that kind (below)
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

#include "vta_config.h"
#include "vta_driver.h"
#include "vta_sim.h"

#define PAGE 4096u
/* What one look for the end stands for, in work of the simulator. */
#define WORK_OF_A_LOOK 1024u

#ifdef USE_VTA64
#define LAST_ADDRESS UINT64_MAX
#else
#define LAST_ADDRESS UINT64_C(0xffffffff)
#endif

/* What a run with a fault does: never returns; ends the process; leaves a wrong byte; says late that it is done; says so
 * before it began, and runs when the next one is asked for; loses a token. */
enum fault { HANG, CRASH, WRONG, LATE, STALE, TOKEN, FAULTS };
static const char *const FAULT_NAME[FAULTS] = {"hang", "crash", "wrong", "late", "stale", "token"};

static unsigned long number(const char *name, unsigned long otherwise) {
  const char *text = getenv(name);
  return text != NULL && *text != '\0' ? strtoul(text, NULL, 0) : otherwise;
}

/* Memory -------------------------------------------------------------------------------------- */

/* Allocations in the order of their addresses; a page that nothing has lies between two. */
struct allocation {
  uint8_t *data;
  uint64_t address, bytes;
  struct allocation *next;
};

static struct allocation *allocations;

static const struct allocation *holding(const uint8_t *data) {
  for (const struct allocation *one = allocations; one != NULL; one = one->next) {
    if (data >= one->data && data < one->data + one->bytes) return one;
  }
  return NULL;
}

static uint8_t *span(void *context, uint64_t address, uint64_t bytes) {
  (void)context;
  for (const struct allocation *one = allocations; one != NULL; one = one->next) {
    if (address < one->address || address - one->address > one->bytes) continue;
    return bytes <= one->bytes - (address - one->address) ? one->data + (address - one->address) : NULL;
  }
  return NULL;
}

void *VTAMemAlloc(size_t size, int cached) {
  uint64_t bytes = ((uint64_t)size + PAGE - 1) / PAGE * PAGE, address = number("VTA_SIM_BASE", PAGE);
  struct allocation **place = &allocations, *made;
  unsigned long largest = number("VTA_SIM_LARGEST", 0);
  void *data;
  (void)cached;
  if (size == 0 || (largest > 0 && size > largest)) return NULL;
  while (*place != NULL && address + bytes + PAGE > (*place)->address) {
    uint64_t end = (*place)->address + (*place)->bytes + PAGE;
    address = end > address ? end : address;
    place = &(*place)->next;
  }
  if (bytes > LAST_ADDRESS - address || posix_memalign(&data, PAGE, (size_t)bytes) != 0) return NULL;
  made = malloc(sizeof *made);
  if (made == NULL) {
    free(data);
    return NULL;
  }
  memset(data, 0, (size_t)bytes);
  made->data = data, made->address = address, made->bytes = bytes, made->next = *place;
  *place = made;
  return data;
}

void VTAMemFree(void *buffer) {
  for (struct allocation **place = &allocations; *place != NULL; place = &(*place)->next) {
    struct allocation *one = *place;
    if (one->data != (uint8_t *)buffer) continue;
    *place = one->next;
    free(one->data);
    free(one);
    return;
  }
}

vta_phy_addr_t VTAMemGetPhyAddr(void *buffer) {
  const struct allocation *one = holding(buffer);
  return one == NULL ? 0 : (vta_phy_addr_t)(one->address + (uint64_t)((uint8_t *)buffer - one->data));
}

void VTAMemCopyFromHost(void *target, const void *source, size_t size) { memcpy(target, source, size); }

void VTAMemCopyToHost(void *target, const void *source, size_t size) { memcpy(target, source, size); }

void VTAFlushCache(void *buffer, vta_phy_addr_t address, int size) { (void)buffer, (void)address, (void)size; }

void VTAInvalidateCache(void *buffer, vta_phy_addr_t address, int size) { (void)buffer, (void)address, (void)size; }

/* The device ---------------------------------------------------------------------------------- */

struct device {
  struct vta_sim *sim;
  unsigned long every[FAULTS], late_ms, limit_ms;
  /* A stale run that is still to come: its instructions. */
  vta_phy_addr_t owed;
  uint32_t owed_count;
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

VTADeviceHandle VTADeviceAlloc(void) {
  struct device *device = calloc(1, sizeof *device);
  if (device == NULL) return NULL;
  device->sim = vta_sim_new();
  device->late_ms = number("VTA_LATE_MS", 200);
  device->limit_ms = number("VTA_LIMIT_MS", 60000);
  device->error = "";
  if (device->sim == NULL || !read_faults(device)) {
    if (device->sim != NULL) fprintf(stderr, "VTA_FAULT is %s; allowed: kind/n,...\n", getenv("VTA_FAULT"));
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
  status = vta_sim_run(device->sim, &memory, insns, count, &run);
  device->error = vta_sim_error(device->sim);
  if (status != VTA_SIM_DONE) fprintf(stderr, "vta: %s\n", device->error);
  if (has[WRONG] && run.stored_bytes > 0) run.stored[0] ^= 1;
  if (status == VTA_SIM_BAD) return VTA_RUN_REFUSED;
  return status == VTA_SIM_DONE ? VTA_RUN_DONE : VTA_RUN_TIMEOUT;
}

int VTADeviceRun(VTADeviceHandle handle, vta_phy_addr_t insns, uint32_t count, uint32_t wait) {
  static const int none[FAULTS] = {0};
  struct device *device = handle;
  int has[FAULTS], result;
  runs++;
  for (int kind = 0; kind < FAULTS; kind++) has[kind] = device->every[kind] > 0 && runs % device->every[kind] == 0;
  if (device->owed_count > 0) {
    uint32_t owed = device->owed_count;
    device->owed_count = 0;
    run_now(device, device->owed, owed, wait, none);
  }
  if (has[CRASH]) abort();
  while (has[HANG]) pause_ms(1000);
  if (has[STALE]) {
    device->owed = insns, device->owed_count = count;
    device->error = "";
    return VTA_RUN_DONE;
  }
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
