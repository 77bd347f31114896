/* A model of a design's registers, in place of oneshot_ml2/c/vta_registers.c: it executes what it is told to start.
 *
 * Environment: MODEL_LOG, a file that every access is written to, in the order of the accesses; MODEL_POLLS, how many
 * reads after a start the first instruction is executed, and as many later the last one (2); MODEL_MS, milliseconds that
 * a run takes at least (0); MODEL_HANG, a run that never ends.
 */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vta_blocks.h"
#include "vta_config.h"
#include "vta_registers.h"
#include "vta_sim.h"

enum { WINDOWS = 4, WORDS = 0x400 };
enum { WAITING, RUNNING, OVER };

static uint32_t words[WINDOWS][WORDS];
static int opened, state = OVER;
static unsigned long polls;
static struct timespec started;
static FILE *log_file;

#ifdef VTA_DESIGN_HLS
enum { FETCH, LOAD, COMPUTE, STORE };
/* Whether compute has written `done` since that was asked last. */
static int valid;
#endif

static void note(const char *what, unsigned int window, unsigned int offset, unsigned int value) {
  if (log_file == NULL && getenv("MODEL_LOG") != NULL) log_file = fopen(getenv("MODEL_LOG"), "a");
  if (log_file == NULL) return;
  fprintf(log_file, "%s %u %02x %x\n", what, window, offset, value);
  fflush(log_file);
}

void *vta_registers_open(uint64_t address, uint32_t bytes) {
  note("open", (unsigned int)opened, bytes, (unsigned int)address);
#ifdef VTA_DESIGN_HLS
  /* A design out of its bitstream: fetch is idle. */
  words[FETCH][0] = 4;
#endif
  return opened < WINDOWS ? words[opened++] : NULL;
}

void vta_registers_close(void *registers, uint32_t bytes) { (void)registers, (void)bytes; }

static unsigned int window_of(const void *registers) {
  return (unsigned int)(((const uint32_t *)registers - words[0]) / WORDS);
}

static uint8_t *span(void *context, uint64_t address, uint64_t bytes) {
  (void)context;
  return vta_blocks_span(address, bytes);
}

static void execute(uint32_t address, uint32_t count) {
  static struct vta_sim *sim;
  const struct vta_memory memory = {span, NULL};
  struct vta_run run;
  enum vta_status status;
  if (sim == NULL) sim = vta_sim_new();
  memset(&run, 0, sizeof run);
  run.work = UINT64_MAX;
  run.seconds = 60;
  status = vta_sim_run(sim, &memory, address, count, &run);
  note("executed", 0, (unsigned int)status, count);
}

static double elapsed_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)(now.tv_sec - started.tv_sec) * 1e3 + (double)(now.tv_nsec - started.tv_nsec) * 1e-6;
}

/* Let a run that was started go on by a poll. */
static void advance(void) {
  unsigned long some = (unsigned long)vta_number("MODEL_POLLS", 2);
  if (state == OVER || getenv("MODEL_HANG") != NULL) return;
  polls++;
  if (state == WAITING && polls >= some) {
    state = RUNNING;
#ifdef VTA_DESIGN_HLS
    /* The first compute instruction: it is no FINISH. */
    words[COMPUTE][0x18 / 4] = 0;
    valid = 1;
#endif
  }
  if (polls < 2 * some || elapsed_ms() < (double)vta_number("MODEL_MS", 0)) return;
  state = OVER;
#ifdef VTA_DESIGN_HLS
  execute(words[FETCH][0x18 / 4], words[FETCH][0x10 / 4]);
  words[COMPUTE][0x18 / 4] = 1;
  valid = 1;
  words[FETCH][0] = 4;
#else
  execute(words[0][0x0c / 4], words[0][0x08 / 4]);
  words[0][0] = 2;
  words[0][1] += 4321;
#endif
}

static void begin(void) {
  state = WAITING;
  polls = 0;
  clock_gettime(CLOCK_MONOTONIC, &started);
}

void vta_register_write(void *registers, uint32_t offset, uint32_t value) {
  unsigned int window = window_of(registers);
  note("write", window, offset, value);
#ifdef VTA_DESIGN_HLS
  if (offset == 0) {
    /* What compute reads as done cannot be written; control keeps fetch's idle bit away while it runs. */
    words[window][0] = window == FETCH ? value & ~4u : value;
    if (window == FETCH && value & 1u) begin();
    return;
  }
  if (window == COMPUTE && offset == 0x18) return;
#else
  if (offset == 0 && value & 1u) begin();
#endif
  words[window][offset / 4] = value;
}

uint32_t vta_register_read(void *registers, uint32_t offset) {
  unsigned int window = window_of(registers);
  uint32_t value;
#ifdef VTA_DESIGN_HLS
  if (window == COMPUTE && (offset == 0x18 || offset == 0x1c)) advance();
  value = words[window][offset / 4];
  if (window == COMPUTE && offset == 0x1c) {
    value = (uint32_t)valid;
    valid = 0;
  }
#else
  if (offset == 0) advance();
  value = words[window][offset / 4];
#endif
  note("read", window, offset, value);
  return value;
}
