/* What a VTA computes: a functional simulator, bit for bit as the RTL, of the accelerator in vta_config.h. */
#ifndef VTA_SIM_H
#define VTA_SIM_H

#include <stdint.h>

struct vta_sim;

/* The memory that a program addresses: `span` gives the bytes at a physical address, NULL unless all are there. */
struct vta_memory {
  uint8_t *(*span)(void *context, uint64_t address, uint64_t bytes);
  void *context;
};

enum vta_status {
  VTA_SIM_DONE,
  /* It waits for tokens that never come, or has no FINISH: hardware would hang. */
  VTA_SIM_STUCK,
  /* It takes longer than it may. */
  VTA_SIM_SLOW,
  /* An instruction that the RTL does not know, or an address without memory. */
  VTA_SIM_BAD
};

/* What a device may get wrong in every run, for tests of what finds that (docs/doctor.md); only simulators that are built
 * with VTA_BREAKABLE do: pads of a LOAD keep what was there; rows of a LOAD follow one another; a GEMM's outer loop does
 * not move on weights; SHR by an accumulator shifts nothing; a reset clears nothing; a queue holds 15 tokens; an
 * accumulator is written 8 operations late. */
enum vta_broken {
  VTA_BROKEN_PADS = 1,
  VTA_BROKEN_STRIDES = 2,
  VTA_BROKEN_OUTER_WEIGHT = 4,
  VTA_BROKEN_SHIFT = 8,
  VTA_BROKEN_RESET = 16,
  VTA_BROKEN_TOKENS = 32,
  VTA_BROKEN_DISTANCE = 64
};

/* Limits and faults of one run. */
struct vta_run {
  /* Tile operations and elements moved, at most; and seconds of CPU time. */
  uint64_t work;
  double seconds;
  /* Which push of a token is lost, from 1 on; 0: none. */
  uint64_t lost_push;
  /* Of enum vta_broken. */
  unsigned broken;
  /* Where the last row was stored; set by the run. */
  uint8_t *stored;
  uint64_t stored_bytes;
};

/* SRAMs of zeros and no tokens; NULL without memory for it. Both survive from run to run, as in hardware. */
struct vta_sim *vta_sim_new(void);
void vta_sim_free(struct vta_sim *sim);

enum vta_status vta_sim_run(struct vta_sim *sim, const struct vta_memory *memory, uint64_t address, uint32_t count,
                            struct vta_run *run);

/* Why the last run did not end well, in one line; "" if it did. */
const char *vta_sim_error(const struct vta_sim *sim);

#endif
