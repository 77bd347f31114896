/* Runs on a board, by registers: of the HLS design (hardware/xilinx in apache/tvm-vta: Pynq, Ultra96, ZCU104) or of the
 * Chisel design (DE10-Nano).
 *
 * A run ends when the design says so, after `wait` looks, or when VTA_LIMIT_MS (10000) have passed. A signal that comes
 * meanwhile is kept until then: a design that is left in the middle of a run hangs until its bitstream is loaded again.
 *
 * Environment, read when a device is made:
 *   VTA_LIMIT_MS    wall time that a run may take
 *   VTA_REGISTERS   physical address of the registers, if it is not the one that the library was built for
 *   VTA_DONE_VALID  0: the HLS design's flag that `done` was written is not to be waited for
 */
#define _POSIX_C_SOURCE 200809L

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vta_blocks.h"
#include "vta_config.h"
#include "vta_driver.h"
#include "vta_registers.h"

#define WINDOW 0x1000u

struct device {
  uint64_t limit_ms, cycles;
  void *window[4];
  char error[200];
#ifdef VTA_DESIGN_HLS
  int wait_for_valid;
#endif
};

/* Time and signals ---------------------------------------------------------------------------- */

static uint64_t now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000u + (uint64_t)time.tv_nsec / 1000000u;
}

static const int HELD[] = {SIGINT, SIGTERM, SIGHUP};
#define HELD_SIGNALS (sizeof HELD / sizeof HELD[0])

static volatile sig_atomic_t came;

static void keep(int signal_number) { came = signal_number; }

static void hold(struct sigaction *before) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = keep;
  action.sa_flags = SA_RESTART;
  came = 0;
  for (size_t i = 0; i < HELD_SIGNALS; i++) sigaction(HELD[i], &action, &before[i]);
}

/* Put handlers back, and let a signal that came have its way. */
static void release(const struct sigaction *before, int result) {
  for (size_t i = 0; i < HELD_SIGNALS; i++) sigaction(HELD[i], &before[i], NULL);
  if (came == 0) return;
  fprintf(stderr, "vta: signal %d came during a run, which %s first\n", (int)came,
          result == VTA_RUN_DONE ? "ended" : "did not end in time");
  raise((int)came);
}

/* The designs ---------------------------------------------------------------------------------- */

#ifdef VTA_DESIGN_HLS

/* Four windows, each a module with its control register. */
enum { FETCH, LOAD, COMPUTE, STORE, WINDOWS };
enum { CONTROL = 0x00, START = 0x01, IDLE = 0x04, AUTO_RESTART = 0x80 };
enum { FETCH_COUNT = 0x10, FETCH_INSNS = 0x18, LOAD_INP = 0x10, LOAD_WGT = 0x18, STORE_OUT = 0x10 };
enum { DONE_WRITE = 0x10, DONE_READ = 0x18, DONE_VALID = 0x1c, COMPUTE_UOP = 0x20, COMPUTE_BIAS = 0x28 };

/* Start a run; 0 if the design is not ready for one. */
static int start(struct device *device, uint32_t insns, uint32_t count) {
  void *const *window = device->window;
  if (!(vta_register_read(window[FETCH], CONTROL) & IDLE)) {
    snprintf(device->error, sizeof device->error,
             "the fetch module is still busy with an earlier run: load the bitstream again");
    return 0;
  }
  vta_register_write(window[FETCH], FETCH_COUNT, count);
  vta_register_write(window[FETCH], FETCH_INSNS, insns);
  vta_register_write(window[LOAD], LOAD_INP, 0);
  vta_register_write(window[LOAD], LOAD_WGT, 0);
  vta_register_write(window[COMPUTE], COMPUTE_UOP, 0);
  vta_register_write(window[COMPUTE], COMPUTE_BIAS, 0);
  vta_register_write(window[STORE], STORE_OUT, 0);
  /* `done` keeps its 1 from the last run until compute writes it again; that it has, its valid flag says, which
   * reading clears. */
  vta_register_write(window[COMPUTE], DONE_WRITE, 0);
  vta_register_read(window[COMPUTE], DONE_VALID);
  vta_register_write(window[LOAD], CONTROL, START | AUTO_RESTART);
  vta_register_write(window[COMPUTE], CONTROL, START | AUTO_RESTART);
  vta_register_write(window[STORE], CONTROL, START | AUTO_RESTART);
  vta_register_write(window[FETCH], CONTROL, START);
  device->wait_for_valid = vta_number("VTA_DONE_VALID", 1) != 0;
  return 1;
}

static int ended(struct device *device) {
  if (device->wait_for_valid && !(vta_register_read(device->window[COMPUTE], DONE_VALID) & 1)) return 0;
  device->wait_for_valid = 0;
  return vta_register_read(device->window[COMPUTE], DONE_READ) & 1;
}

static void explain(struct device *device) {
  const char *why = "the design does not end; load the bitstream again before the next run";
  if (device->wait_for_valid && vta_register_read(device->window[COMPUTE], DONE_READ) & 1)
    why = "`done` is 1, but was not written since the start; if the results are right, set VTA_DONE_VALID=0";
  else if (device->wait_for_valid)
    why = "compute has executed nothing: is this design's bitstream loaded, and are its registers at this address?";
  snprintf(device->error, sizeof device->error, "%s", why);
}

static uint64_t cycles_of(struct device *device) {
  (void)device;
  return 0;
}

#else

/* One window. */
enum { WINDOWS = 1 };
enum { CONTROL = 0x00, LAUNCH = 0x01, FINISHED = 0x02 };
enum { CYCLES = 0x04, COUNT = 0x08, INSNS = 0x0c, BASES = 0x10, BASES_END = 0x24 };

static int start(struct device *device, uint32_t insns, uint32_t count) {
  void *window = device->window[0];
  if (vta_register_read(window, CONTROL) & LAUNCH) {
    snprintf(device->error, sizeof device->error,
             "the design is still busy with an earlier run: load the bitstream again");
    return 0;
  }
  vta_register_write(window, CYCLES, 0);
  vta_register_write(window, COUNT, count);
  vta_register_write(window, INSNS, insns);
  for (uint32_t base = BASES; base < BASES_END; base += 4) vta_register_write(window, base, 0);
  vta_register_write(window, CONTROL, LAUNCH);
  return 1;
}

static int ended(struct device *device) { return (vta_register_read(device->window[0], CONTROL) & FINISHED) != 0; }

static void explain(struct device *device) {
  snprintf(device->error, sizeof device->error,
           "the design does not end; load the bitstream again before the next run");
}

static uint64_t cycles_of(struct device *device) { return vta_register_read(device->window[0], CYCLES); }

#endif

/* The interface -------------------------------------------------------------------------------- */

void VTADeviceFree(VTADeviceHandle handle) {
  struct device *device = handle;
  if (device == NULL) return;
  for (int i = 0; i < WINDOWS; i++) {
    if (device->window[i] != NULL) vta_registers_close(device->window[i], WINDOW);
  }
  free(device);
}

VTADeviceHandle VTADeviceAlloc(void) {
  struct device *device = calloc(1, sizeof *device);
  uint64_t base = vta_number("VTA_REGISTERS", VTA_REGISTERS);
  if (device == NULL) return NULL;
  device->limit_ms = vta_number("VTA_LIMIT_MS", 10000);
  for (int i = 0; i < WINDOWS; i++) {
    device->window[i] = vta_registers_open(base + (uint64_t)i * WINDOW, WINDOW);
    if (device->window[i] != NULL) continue;
    VTADeviceFree(device);
    return NULL;
  }
  return device;
}

static int run_now(struct device *device, uint32_t insns, uint32_t count, uint32_t wait) {
  uint64_t end = now_ms() + device->limit_ms;
  device->cycles = 0;
  if (!start(device, insns, count)) return VTA_RUN_REFUSED;
  for (uint32_t look = 0; look < wait && now_ms() <= end; look++) {
    if (ended(device)) {
      device->cycles = cycles_of(device);
      return VTA_RUN_DONE;
    }
    sched_yield();
  }
  explain(device);
  return VTA_RUN_TIMEOUT;
}

int VTADeviceRun(VTADeviceHandle handle, vta_phy_addr_t insns, uint32_t count, uint32_t wait) {
  struct device *device = handle;
  struct sigaction before[HELD_SIGNALS];
  int result;
  device->error[0] = '\0';
  hold(before);
  /* The designs' registers for addresses have 32 bits. */
  result = run_now(device, (uint32_t)insns, count, wait);
  if (result != VTA_RUN_DONE) fprintf(stderr, "vta: %s\n", device->error);
  release(before, result);
  return result;
}

const char *VTAConfiguration(void) { return VTA_CONFIGURATION; }

const char *VTADeviceError(VTADeviceHandle handle) { return ((struct device *)handle)->error; }

uint64_t VTADeviceCycles(VTADeviceHandle handle) { return ((struct device *)handle)->cycles; }
