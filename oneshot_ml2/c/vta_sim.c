/* Functional simulator. See vta_sim.h; the semantics are those of VTA's RTL (hardware/chisel in apache/tvm-vta).
 *
 * Fetch hands instructions to the queues of load, compute and store, in program order and until a queue is full. Of the
 * three heads whose tokens are there, the oldest is executed: so a program whose tokens allow its own order runs in it.
 */
#include "vta_sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vta_config.h"

#define BATCH (1u << VTA_LOG_BATCH)
#define BLOCK (1u << VTA_LOG_BLOCK)
#define LANES (BATCH * BLOCK)
#define INP_DEPTH (1u << VTA_LOG_INP_DEPTH)
#define WGT_DEPTH (1u << VTA_LOG_WGT_DEPTH)
#define ACC_DEPTH (1u << VTA_LOG_ACC_DEPTH)
#define UOP_WRAPS ((VTA_UOP_DEPTH & (VTA_UOP_DEPTH - 1)) == 0)

#define INSN_BYTES 16
#define MOST_TOKENS 255
#define FEW_TOKENS 15
/* Operations after which an accumulator is written, of a device that is late with that. */
#define LATE 8u
#define ITERATIONS (1u << 14)
/* How much work is done between two looks at the clock. */
#define LOOK (1u << 16)

#ifdef USE_VTA64
#define ADDRESS_MASK UINT64_MAX
#else
#define ADDRESS_MASK UINT64_C(0xffffffff)
#endif

#ifdef VTA_BREAKABLE
#define BROKEN(run, what) (((run)->broken & (what)) != 0)
#else
#define BROKEN(run, what) ((void)(run), 0)
#endif

enum { OP_LOAD, OP_STORE, OP_GEMM, OP_FINISH, OP_ALU };
enum { MEM_UOP, MEM_WGT, MEM_INP, MEM_ACC };
enum { ALU_MIN, ALU_MAX, ALU_ADD, ALU_SHR };
enum { POP_PREV = 1, POP_NEXT = 2, PUSH_PREV = 4, PUSH_NEXT = 8 };
enum { LOAD, COMPUTE, STORE, MODULES };
enum { LOAD_TO_COMPUTE, COMPUTE_TO_LOAD, COMPUTE_TO_STORE, STORE_TO_COMPUTE, TOKENS, NO_TOKEN };

/* Which counter each flag of a module moves, in the order of the flags' bits. */
static const uint8_t COUNTER[MODULES][4] = {
    {NO_TOKEN, COMPUTE_TO_LOAD, NO_TOKEN, LOAD_TO_COMPUTE},
    {LOAD_TO_COMPUTE, STORE_TO_COMPUTE, COMPUTE_TO_LOAD, COMPUTE_TO_STORE},
    {COMPUTE_TO_STORE, NO_TOKEN, STORE_TO_COMPUTE, NO_TOKEN},
};
static const char *const MODULE_NAME[MODULES] = {"load", "compute", "store"};

/* A field of an instruction: two words, and what vta_config.h says of where it lies. */
#define BITS(word, low, bits) (((word) >> (low)) & ((UINT64_C(1) << (bits)) - 1))
#define FIELD(insn, name) ((uint32_t)BITS((insn)->word[VTA_##name##_LOW / 64], VTA_##name##_LOW % 64, VTA_##name##_BITS))

struct insn {
  uint64_t word[2];
};

struct queue {
  uint32_t index[VTA_QUEUE];
  uint32_t first, size;
};

/* A result on its way to an accumulator. */
struct late {
  int waits;
  uint32_t place;
  int32_t acc[LANES];
};

struct vta_sim {
  uint32_t uop[VTA_UOP_DEPTH];
  int8_t inp[INP_DEPTH][LANES];
  /* Input lane by output lane, the other way round than in DRAM: then a vector holds output lanes. */
  int16_t wgt[WGT_DEPTH][BLOCK][BLOCK];
  int32_t acc[ACC_DEPTH][LANES];
  int8_t out[ACC_DEPTH][LANES];
  struct queue queue[MODULES];
  uint32_t tokens[TOKENS];
  struct late late[LATE];
  uint64_t pushes, work, looked;
  clock_t began;
  /* What is wrong with an instruction; and the whole line. */
  char why[120], error[160];
};

struct vta_sim *vta_sim_new(void) { return calloc(1, sizeof(struct vta_sim)); }

void vta_sim_free(struct vta_sim *sim) { free(sim); }

const char *vta_sim_error(const struct vta_sim *sim) { return sim->error; }

/* Account for work that is about to be done: 0 if it may be. */
static int over(struct vta_sim *sim, const struct vta_run *run, uint64_t work) {
  sim->work += work;
  if (sim->work > run->work) return 1;
  if (sim->work - sim->looked < LOOK) return 0;
  sim->looked = sim->work;
  return (double)(clock() - sim->began) / CLOCKS_PER_SEC > run->seconds;
}

/* Memory -------------------------------------------------------------------------------------- */

/* Elements of an SRAM from `position` on: copied from `source`, or zeros where it is NULL. Indices wrap. */
static void fill(uint8_t *sram, uint32_t depth, uint32_t size, uint64_t position, const uint8_t *source, uint64_t n) {
  while (n > 0) {
    uint64_t begin = position % depth;
    uint64_t part = n < depth - begin ? n : depth - begin;
    if (source != NULL) {
      memcpy(sram + begin * size, source, (size_t)(part * size));
      source += part * size;
    } else {
      memset(sram + begin * size, 0, (size_t)(part * size));
    }
    position += part;
    n -= part;
  }
}

/* As `fill`, of weights, which are kept transposed and widened. */
static void fill_weights(struct vta_sim *sim, uint64_t position, const uint8_t *source, uint64_t n) {
  for (; n > 0; n--, position++) {
    int16_t(*tile)[BLOCK] = sim->wgt[position % WGT_DEPTH];
    if (source == NULL) {
      memset(tile, 0, sizeof sim->wgt[0]);
      continue;
    }
    for (uint32_t m = 0; m < BLOCK; m++) {
      for (uint32_t lane = 0; lane < BLOCK; lane++) tile[m][lane] = (int8_t)source[lane * BLOCK + m];
    }
    source += BLOCK * BLOCK;
  }
}

static void fill_memory(struct vta_sim *sim, uint32_t id, uint64_t position, const uint8_t *source, uint64_t n) {
  switch (id) {
    case MEM_UOP: fill((uint8_t *)sim->uop, VTA_UOP_DEPTH, 4, position, source, n); break;
    case MEM_WGT: fill_weights(sim, position, source, n); break;
    case MEM_INP: fill((uint8_t *)sim->inp, INP_DEPTH, LANES, position, source, n); break;
    default: fill((uint8_t *)sim->acc, ACC_DEPTH, 4 * LANES, position, source, n); break;
  }
}

static enum vta_status load(struct vta_sim *sim, const struct insn *insn, const struct vta_memory *memory,
                            struct vta_run *run) {
  /* Bytes of an element of each memory. */
  static const uint32_t SIZE[] = {4, BLOCK * BLOCK, LANES, 4 * LANES};
  uint32_t id = FIELD(insn, MEM_MEMORY_ID), size = SIZE[id];
  uint32_t x = FIELD(insn, MEM_X_SIZE), y = FIELD(insn, MEM_Y_SIZE);
  uint32_t left = FIELD(insn, MEM_X_PAD_0), right = FIELD(insn, MEM_X_PAD_1);
  uint32_t top = FIELD(insn, MEM_Y_PAD_0), height = top + y + FIELD(insn, MEM_Y_PAD_1);
  uint64_t position = FIELD(insn, MEM_SRAM_BASE), width = (uint64_t)left + x + right;
  if (!UOP_WRAPS && id == MEM_UOP && position + height * width > VTA_UOP_DEPTH) {
    snprintf(sim->why, sizeof sim->why, "goes past the %u micro-ops that the SRAM holds", VTA_UOP_DEPTH);
    return VTA_SIM_BAD;
  }
  for (uint32_t row = 0; row < height; row++, position += width) {
    const uint8_t *source;
    uint64_t address;
    if (over(sim, run, width)) return VTA_SIM_SLOW;
    if (row < top || row >= top + y) {
      if (!BROKEN(run, VTA_BROKEN_PADS)) fill_memory(sim, id, position, NULL, width);
      continue;
    }
    address = FIELD(insn, MEM_DRAM_BASE);
    address += (uint64_t)(row - top) * (BROKEN(run, VTA_BROKEN_STRIDES) ? x : FIELD(insn, MEM_X_STRIDE));
    address = address * size & ADDRESS_MASK;
    source = memory->span(memory->context, address, (uint64_t)x * size);
    if (source == NULL) {
      snprintf(sim->why, sizeof sim->why, "reads %lu bytes at 0x%lx, where no memory is",
               (unsigned long)x * size, (unsigned long)address);
      return VTA_SIM_BAD;
    }
    if (!BROKEN(run, VTA_BROKEN_PADS)) {
      fill_memory(sim, id, position, NULL, left);
      fill_memory(sim, id, position + left + x, NULL, right);
    }
    fill_memory(sim, id, position + left, source, x);
  }
  return VTA_SIM_DONE;
}

static enum vta_status store(struct vta_sim *sim, const struct insn *insn, const struct vta_memory *memory,
                             struct vta_run *run) {
  uint64_t position = FIELD(insn, MEM_SRAM_BASE);
  uint32_t x = FIELD(insn, MEM_X_SIZE), y = FIELD(insn, MEM_Y_SIZE);
  for (uint32_t row = 0; row < y; row++) {
    uint64_t address = FIELD(insn, MEM_DRAM_BASE) + (uint64_t)row * FIELD(insn, MEM_X_STRIDE);
    uint8_t *target;
    if (over(sim, run, x)) return VTA_SIM_SLOW;
    address = address * LANES & ADDRESS_MASK;
    target = memory->span(memory->context, address, (uint64_t)x * LANES);
    if (target == NULL) {
      snprintf(sim->why, sizeof sim->why, "writes %lu bytes at 0x%lx, where no memory is",
               (unsigned long)x * LANES, (unsigned long)address);
      return VTA_SIM_BAD;
    }
    run->stored = target;
    run->stored_bytes = (uint64_t)x * LANES;
    for (uint64_t left = x; left > 0;) {
      uint64_t begin = position % ACC_DEPTH;
      uint64_t part = left < ACC_DEPTH - begin ? left : ACC_DEPTH - begin;
      memcpy(target, sim->out[begin], (size_t)(part * LANES));
      target += part * LANES;
      position += part;
      left -= part;
    }
  }
  return VTA_SIM_DONE;
}

/* Compute ------------------------------------------------------------------------------------- */

/* ACC[dst] += INP[src] * WGT[wgt]; the low bytes go to OUT. */
static void gemm_tile(int32_t *restrict acc, int8_t *restrict out, const int8_t *restrict inp,
                      int16_t (*restrict wgt)[BLOCK]) {
  for (uint32_t b = 0; b < BATCH; b++) {
    /* Sums wrap, which only unsigned ones may. */
    uint32_t total[BLOCK];
    for (uint32_t n = 0; n < BLOCK; n++) total[n] = (uint32_t)acc[b * BLOCK + n];
    for (uint32_t m = 0; m < BLOCK; m++) {
      int16_t value = inp[b * BLOCK + m];
      for (uint32_t n = 0; n < BLOCK; n++) total[n] += (uint32_t)((int32_t)value * wgt[m][n]);
    }
    for (uint32_t n = 0; n < BLOCK; n++) {
      acc[b * BLOCK + n] = (int32_t)total[n];
      out[b * BLOCK + n] = (int8_t)total[n];
    }
  }
}

/* ACC[dst] = op(a, b); an immediate makes a = ACC[src], and in both modes its sign is the direction of a shift. */
static void alu_tile(int32_t *dst, int8_t *out, const int32_t *src, uint32_t op, int immediate, int32_t value) {
  int32_t a[LANES], b[LANES];
  for (uint32_t lane = 0; lane < LANES; lane++) {
    a[lane] = immediate ? src[lane] : dst[lane];
    b[lane] = immediate ? value : src[lane];
  }
  switch (op) {
    case ALU_MIN:
      for (uint32_t lane = 0; lane < LANES; lane++) dst[lane] = a[lane] < b[lane] ? a[lane] : b[lane];
      break;
    case ALU_MAX:
      for (uint32_t lane = 0; lane < LANES; lane++) dst[lane] = a[lane] > b[lane] ? a[lane] : b[lane];
      break;
    case ALU_ADD:
      for (uint32_t lane = 0; lane < LANES; lane++) dst[lane] = (int32_t)((uint32_t)a[lane] + (uint32_t)b[lane]);
      break;
    default:
      for (uint32_t lane = 0; lane < LANES; lane++) {
        uint32_t by = (value < 0 ? 0u - (uint32_t)b[lane] : (uint32_t)b[lane]) & 31u;
        dst[lane] = value < 0 ? (int32_t)((uint32_t)a[lane] << by) : a[lane] >> by;
      }
  }
  for (uint32_t lane = 0; lane < LANES; lane++) out[lane] = (int8_t)dst[lane];
}

/* Write the result that waits in a place of the pipeline, if there is one. */
static void arrive(struct vta_sim *sim, struct late *late) {
  if (late->waits) memcpy(sim->acc[late->place], late->acc, sizeof late->acc);
  late->waits = 0;
}

/* Where an instruction's n-th operation puts the accumulator `place`: there, or of a late device in its pipeline. */
static int32_t *target(struct vta_sim *sim, const struct vta_run *run, uint64_t n, uint32_t place) {
  struct late *late = &sim->late[n % LATE];
  if (!BROKEN(run, VTA_BROKEN_DISTANCE)) return sim->acc[place];
  arrive(sim, late);
  late->waits = 1;
  late->place = place;
  memcpy(late->acc, sim->acc[place], sizeof late->acc);
  return late->acc;
}

/* The end of an instruction of n operations: the pipeline runs empty. */
static void drain(struct vta_sim *sim, uint64_t n) {
  for (uint64_t i = n; i < n + LATE; i++) arrive(sim, &sim->late[i % LATE]);
}

/* The loops that GEMM and ALU share. */
struct loops {
  uint32_t begin, count, outer, inner;
};

static enum vta_status loops_of(struct vta_sim *sim, const struct insn *insn, struct loops *loops) {
  uint32_t mask = (2u << VTA_ISA_UOP_BITS) - 1;
  loops->begin = FIELD(insn, GEMM_UOP_BGN);
  loops->count = (FIELD(insn, GEMM_UOP_END) - loops->begin) & mask;
  /* Counters compare with the extent less one: an extent of 0 is one of all that the counter holds. */
  if (loops->count == 0) loops->count = mask + 1;
  loops->outer = FIELD(insn, GEMM_ITER_OUT) > 0 ? FIELD(insn, GEMM_ITER_OUT) : ITERATIONS;
  loops->inner = FIELD(insn, GEMM_ITER_IN) > 0 ? FIELD(insn, GEMM_ITER_IN) : ITERATIONS;
  if (!UOP_WRAPS && loops->begin + loops->count > VTA_UOP_DEPTH) {
    snprintf(sim->why, sizeof sim->why, "goes past the %u micro-ops that the SRAM holds", VTA_UOP_DEPTH);
    return VTA_SIM_BAD;
  }
  return VTA_SIM_DONE;
}

static enum vta_status gemm(struct vta_sim *sim, const struct insn *insn, struct vta_run *run) {
  struct loops loops;
  enum vta_status status = loops_of(sim, insn, &loops);
  uint32_t reset = FIELD(insn, GEMM_RESET), outer_weight = FIELD(insn, GEMM_WGT_FACTOR_OUT);
  uint64_t n = 0;
  if (BROKEN(run, VTA_BROKEN_OUTER_WEIGHT)) outer_weight = 0;
  if (status != VTA_SIM_DONE) return status;
  for (uint32_t o = 0; o < loops.outer; o++) {
    for (uint32_t i = 0; i < loops.inner; i++) {
      uint32_t dst = o * FIELD(insn, GEMM_DST_FACTOR_OUT) + i * FIELD(insn, GEMM_DST_FACTOR_IN);
      uint32_t src = o * FIELD(insn, GEMM_SRC_FACTOR_OUT) + i * FIELD(insn, GEMM_SRC_FACTOR_IN);
      uint32_t wgt = o * outer_weight + i * FIELD(insn, GEMM_WGT_FACTOR_IN);
      if (over(sim, run, loops.count)) return VTA_SIM_SLOW;
      for (uint32_t k = 0; k < loops.count; k++) {
        uint32_t uop = sim->uop[(loops.begin + k) % VTA_UOP_DEPTH];
        uint32_t d = (uint32_t)(BITS(uop, VTA_UOP_DST_LOW, VTA_UOP_DST_BITS) + dst) % ACC_DEPTH;
        uint32_t s = (uint32_t)(BITS(uop, VTA_UOP_SRC_LOW, VTA_UOP_SRC_BITS) + src) % INP_DEPTH;
        uint32_t w = (uint32_t)(BITS((uint64_t)uop, VTA_UOP_WGT_LOW, VTA_UOP_WGT_BITS) + wgt) % WGT_DEPTH;
        /* A reset leaves OUT as it is. */
        if (!reset) {
          gemm_tile(target(sim, run, n++, d), sim->out[d], sim->inp[s], sim->wgt[w]);
        } else if (!BROKEN(run, VTA_BROKEN_RESET)) {
          memset(sim->acc[d], 0, sizeof sim->acc[d]);
        }
      }
    }
  }
  drain(sim, n);
  return VTA_SIM_DONE;
}

static enum vta_status alu(struct vta_sim *sim, const struct insn *insn, struct vta_run *run) {
  struct loops loops;
  enum vta_status status = loops_of(sim, insn, &loops);
  uint32_t op = FIELD(insn, ALU_ALU_OPCODE), immediate = FIELD(insn, ALU_USE_IMM);
  int32_t value = (int16_t)FIELD(insn, ALU_IMM);
  int shifts = !BROKEN(run, VTA_BROKEN_SHIFT) || immediate || op != ALU_SHR;
  uint64_t n = 0;
  if (status != VTA_SIM_DONE) return status;
  for (uint32_t o = 0; o < loops.outer; o++) {
    for (uint32_t i = 0; i < loops.inner; i++) {
      uint32_t dst = o * FIELD(insn, ALU_DST_FACTOR_OUT) + i * FIELD(insn, ALU_DST_FACTOR_IN);
      uint32_t src = o * FIELD(insn, ALU_SRC_FACTOR_OUT) + i * FIELD(insn, ALU_SRC_FACTOR_IN);
      if (over(sim, run, loops.count)) return VTA_SIM_SLOW;
      for (uint32_t k = 0; k < loops.count; k++) {
        uint32_t uop = sim->uop[(loops.begin + k) % VTA_UOP_DEPTH];
        uint32_t d = (uint32_t)(BITS(uop, VTA_UOP_DST_LOW, VTA_UOP_DST_BITS) + dst) % ACC_DEPTH;
        uint32_t s = (uint32_t)(BITS(uop, VTA_UOP_SRC_LOW, VTA_UOP_SRC_BITS) + src) % ACC_DEPTH;
        if (shifts) alu_tile(target(sim, run, n++, d), sim->out[d], sim->acc[s], op, immediate != 0, value);
      }
    }
  }
  drain(sim, n);
  return VTA_SIM_DONE;
}

/* Instructions and tokens --------------------------------------------------------------------- */

/* Which module executes an instruction; MODULES if the RTL's fetch knows none. */
static int module_of(const struct insn *insn) {
  switch (FIELD(insn, MEM_OPCODE)) {
    case OP_LOAD:
      if (FIELD(insn, MEM_MEMORY_ID) > MEM_ACC) return MODULES;
      return FIELD(insn, MEM_MEMORY_ID) == MEM_INP || FIELD(insn, MEM_MEMORY_ID) == MEM_WGT ? LOAD : COMPUTE;
    case OP_STORE: return STORE;
    case OP_GEMM:
    case OP_FINISH: return COMPUTE;
    case OP_ALU: return FIELD(insn, ALU_ALU_OPCODE) <= ALU_SHR ? COMPUTE : MODULES;
    default: return MODULES;
  }
}

static struct insn fetch(const uint8_t *stream, uint32_t index) {
  struct insn insn;
  memcpy(&insn, stream + (uint64_t)index * INSN_BYTES, INSN_BYTES);
  return insn;
}

/* Whether all tokens that an instruction pops are there. */
static int ready(const struct vta_sim *sim, int module, uint32_t flags) {
  for (int bit = 0; bit < 2; bit++) {
    uint8_t counter = COUNTER[module][bit];
    if (flags & (1u << bit) && counter != NO_TOKEN && sim->tokens[counter] == 0) return 0;
  }
  return 1;
}

static void pop(struct vta_sim *sim, int module, uint32_t flags) {
  for (int bit = 0; bit < 2; bit++) {
    if (flags & (1u << bit) && COUNTER[module][bit] != NO_TOKEN) sim->tokens[COUNTER[module][bit]]--;
  }
}

/* A counter holds no more than 255: what is pushed beyond is lost, as in the RTL. */
static void push(struct vta_sim *sim, int module, uint32_t flags, const struct vta_run *run) {
  uint32_t most = BROKEN(run, VTA_BROKEN_TOKENS) ? FEW_TOKENS : MOST_TOKENS;
  for (int bit = 2; bit < 4; bit++) {
    uint8_t counter = COUNTER[module][bit];
    if (!(flags & (1u << bit)) || counter == NO_TOKEN) continue;
    if (++sim->pushes != run->lost_push && sim->tokens[counter] < most) sim->tokens[counter]++;
  }
}

static enum vta_status execute(struct vta_sim *sim, const struct insn *insn, const struct vta_memory *memory,
                               struct vta_run *run) {
  if (over(sim, run, 1)) return VTA_SIM_SLOW;
  switch (FIELD(insn, MEM_OPCODE)) {
    case OP_LOAD: return FIELD(insn, MEM_X_SIZE) > 0 ? load(sim, insn, memory, run) : VTA_SIM_DONE;
    case OP_STORE: return FIELD(insn, MEM_X_SIZE) > 0 ? store(sim, insn, memory, run) : VTA_SIM_DONE;
    case OP_GEMM: return gemm(sim, insn, run);
    case OP_ALU: return alu(sim, insn, run);
    default: return VTA_SIM_DONE;
  }
}

/* The module whose head is the oldest instruction that can start; MODULES if none can. */
static int next_module(const struct vta_sim *sim, const uint8_t *stream) {
  int found = MODULES;
  uint32_t oldest = 0;
  for (int module = 0; module < MODULES; module++) {
    const struct queue *queue = &sim->queue[module];
    struct insn insn;
    uint32_t index = queue->index[queue->first];
    if (queue->size == 0 || (found != MODULES && index > oldest)) continue;
    insn = fetch(stream, index);
    if (!ready(sim, module, FIELD(&insn, MEM_FLAGS))) continue;
    found = module;
    oldest = index;
  }
  return found;
}

/* Instructions that have been fetched and wait. */
static uint32_t waiting(const struct vta_sim *sim) {
  uint32_t count = 0;
  for (int module = 0; module < MODULES; module++) count += sim->queue[module].size;
  return count;
}

static enum vta_status stuck(struct vta_sim *sim, const uint8_t *stream, uint32_t next, uint32_t count) {
  if (waiting(sim) == 0 && next < count) {
    struct insn insn = fetch(stream, next);
    if (module_of(&insn) == MODULES) {
      snprintf(sim->error, sizeof sim->error, "instruction %u is unknown to the RTL", next);
      return VTA_SIM_BAD;
    }
  }
  if (waiting(sim) == 0) {
    snprintf(sim->error, sizeof sim->error, "the program has no FINISH");
    return VTA_SIM_STUCK;
  }
  for (int module = 0; module < MODULES; module++) {
    const struct queue *queue = &sim->queue[module];
    if (queue->size == 0) continue;
    snprintf(sim->error, sizeof sim->error, "instruction %u of the %s module waits for a token that never comes",
             queue->index[queue->first], MODULE_NAME[module]);
  }
  return VTA_SIM_STUCK;
}

static enum vta_status run_stream(struct vta_sim *sim, const struct vta_memory *memory, const uint8_t *stream,
                                  uint32_t count, struct vta_run *run) {
  uint32_t next = 0;
  int ended = 0;
  for (;;) {
    struct insn insn;
    struct queue *queue;
    enum vta_status status;
    uint32_t index;
    int module;
    for (; next < count && !ended; next++) {
      insn = fetch(stream, next);
      module = module_of(&insn);
      if (module == MODULES || sim->queue[module].size == VTA_QUEUE) break;
      queue = &sim->queue[module];
      queue->index[(queue->first + queue->size++) % VTA_QUEUE] = next;
      /* Nothing behind it is run. */
      ended = FIELD(&insn, MEM_OPCODE) == OP_FINISH;
    }
    module = next_module(sim, stream);
    if (module == MODULES) return stuck(sim, stream, next, count);
    queue = &sim->queue[module];
    index = queue->index[queue->first];
    insn = fetch(stream, index);
    pop(sim, module, FIELD(&insn, MEM_FLAGS));
    status = execute(sim, &insn, memory, run);
    if (status == VTA_SIM_SLOW) {
      snprintf(sim->error, sizeof sim->error, "the time limit ends it at instruction %u", index);
      return status;
    }
    if (status != VTA_SIM_DONE) {
      snprintf(sim->error, sizeof sim->error, "instruction %u %s", index, sim->why);
      return status;
    }
    push(sim, module, FIELD(&insn, MEM_FLAGS), run);
    queue->first = (queue->first + 1) % VTA_QUEUE;
    queue->size--;
    if (FIELD(&insn, MEM_OPCODE) != OP_FINISH) continue;
    /* What still waits would hang, or spoil the next run. */
    return waiting(sim) > 0 ? stuck(sim, stream, next, count) : VTA_SIM_DONE;
  }
}

enum vta_status vta_sim_run(struct vta_sim *sim, const struct vta_memory *memory, uint64_t address, uint32_t count,
                            struct vta_run *run) {
  const uint8_t *stream = memory->span(memory->context, address, (uint64_t)count * INSN_BYTES);
  sim->error[0] = '\0';
  sim->pushes = sim->work = sim->looked = 0;
  sim->began = clock();
  run->stored = NULL;
  run->stored_bytes = 0;
  memset(sim->queue, 0, sizeof sim->queue);
  if (stream == NULL) {
    snprintf(sim->error, sizeof sim->error, "%u instructions at 0x%lx, where no memory is", count,
             (unsigned long)address);
    return VTA_SIM_BAD;
  }
  return run_stream(sim, memory, stream, count, run);
}
