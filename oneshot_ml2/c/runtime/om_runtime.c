/* See om_runtime.h. */
#if defined(__unix__) || defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#endif

#include "om_runtime.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vta_config.h"
#include "vta_driver.h"

#define VERSION 1u
#define HEADER 32
#define INSN_BYTES 16u
/* How many polls a run may take: the drivers of boards have limits of wall time. */
#define POLLS 0x7fffffffu
/* The driver counts bytes as int. */
#define MOST_SYNCED (UINT64_C(1) << 30)
/* An int8 that a last bit of a float decides may be off by one; a sum on the host of such by two. */
#define MOST_STEPS 2

/* One model is open at a time. */
static struct {
  const struct om_model *model;
  uint8_t *arena, *constants, *staging, *golden, *owned;
  VTADeviceHandle device;
  uint8_t *pool;
  vta_phy_addr_t address;
  /* Of the golden run: what comes next of `golden`; operands that differ, by how many steps; of each submission
   * whether its results are right. */
  const uint8_t *next;
  int64_t differ;
  int32_t steps, wrong;
  double vta_ms;
} om;

static char message[256];

const char *om_error(void) { return message; }

static int fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return 1;
}

static double now_ms(void) {
#ifdef _POSIX_C_SOURCE
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
#else
  return (double)clock() * 1e3 / CLOCKS_PER_SEC;
#endif
}

static size_t bytes_of(om_in x) { return (size_t)om_elements(x) * (size_t)x->bytes; }

/* model.bin ------------------------------------------------------------------------------------- */

/* CRC-32 (IEEE 802.3), four bits at a time. */
static uint32_t crc32(uint32_t crc, const uint8_t *data, size_t count) {
  static const uint32_t TABLE[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                     0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                     0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
  crc = ~crc;
  for (size_t i = 0; i < count; i++) {
    crc ^= data[i];
    crc = crc >> 4 ^ TABLE[crc & 15];
    crc = crc >> 4 ^ TABLE[crc & 15];
  }
  return ~crc;
}

/* A file, or the same content in memory; `crc`: of what was read of it. */
struct source {
  FILE *file;
  const uint8_t *bytes;
  const char *path;
  uint32_t crc;
};

static int take(struct source *source, void *to, uint64_t count) {
  if (source->file == NULL) {
    memcpy(to, source->bytes, (size_t)count);
    source->bytes += count;
  } else if (fread(to, 1, (size_t)count, source->file) != (size_t)count) {
    return fail("%s ends too early; export the model again", source->path);
  }
  source->crc = crc32(source->crc, to, (size_t)count);
  return 0;
}

static uint64_t little(const uint8_t *bytes, int count) {
  uint64_t number = 0;
  for (int i = count - 1; i >= 0; i--) number = number << 8 | bytes[i];
  return number;
}

static int read_header(struct source *source) {
  uint8_t header[HEADER];
  if (take(source, header, HEADER) != 0) return 1;
  if (memcmp(header, "OM2MODEL", 8) != 0) return fail("%s is no model.bin", source->path);
  if (little(header + 8, 4) != VERSION) {
    return fail("%s is of version %lu, this program reads %u; export the model again", source->path,
                (unsigned long)little(header + 8, 4), VERSION);
  }
  if (little(header + 12, 4) != om.model->checksum ||
      little(header + 16, 8) != om.model->constants + om.model->image + om.model->golden) {
    return fail("%s is of another model than this program; take the one that was exported with it", source->path);
  }
  source->crc = 0;
  return 0;
}

/* The image into the VTA's memory, through `staging`. */
static int read_image(struct source *source) {
  for (uint64_t at = 0; at < om.model->image;) {
    const uint64_t rest = om.model->image - at, part = rest < om.model->staging ? rest : om.model->staging;
    if (take(source, om.staging, part) != 0) return 1;
    VTAMemCopyFromHost(om.pool + at, om.staging, (size_t)part);
    at += part;
  }
  return 0;
}

static int read_all(struct source *source, int golden) {
  if (read_header(source) != 0 || take(source, om.constants, om.model->constants) != 0) return 1;
  if (read_image(source) != 0) return 1;
  if (golden) {
    if (take(source, om.golden, om.model->golden) != 0) return 1;
  } else {
    for (uint64_t at = 0; at < om.model->golden;) {
      const uint64_t rest = om.model->golden - at, part = rest < om.model->staging ? rest : om.model->staging;
      if (take(source, om.staging, part) != 0) return 1;
      at += part;
    }
  }
  if (source->file != NULL && fgetc(source->file) != EOF) return fail("%s is longer than it should be", source->path);
  if (source->crc != om.model->checksum) return fail("%s is damaged; export the model again", source->path);
  return 0;
}

/* The VTA's memory ------------------------------------------------------------------------------ */

/* Write a range back before the VTA reads it, or drop it from the cache before the host reads it. */
static void sync_range(uint64_t address, uint64_t bytes, int to_device) {
#ifndef OM_COHERENT
  while (bytes > 0) {
    const uint64_t part = bytes < MOST_SYNCED ? bytes : MOST_SYNCED;
    const vta_phy_addr_t place = (vta_phy_addr_t)(om.address + address);
    if (to_device) {
      VTAFlushCache(om.pool + address, place, (int)part);
    } else {
      VTAInvalidateCache(om.pool + address, place, (int)part);
    }
    address += part;
    bytes -= part;
  }
#else
  (void)address, (void)bytes, (void)to_device;
#endif
}

/* The bits of a word from `low` on. */
#define FIELD(words, name) \
  ((words)[VTA_MEM_##name##_LOW / 64] >> (VTA_MEM_##name##_LOW % 64) & ((UINT64_C(1) << VTA_MEM_##name##_BITS) - 1))

/* Bytes of an element of each memory: micro-ops, weights, inputs, accumulators, outputs, accumulators from int8. */
static const uint32_t ELEMENT[6] = {4,
                                    1u << (2 * VTA_LOG_BLOCK),
                                    1u << (VTA_LOG_BATCH + VTA_LOG_BLOCK),
                                    4u << (VTA_LOG_BATCH + VTA_LOG_BLOCK),
                                    1u << (VTA_LOG_BATCH + VTA_LOG_BLOCK),
                                    1u << (VTA_LOG_BATCH + VTA_LOG_BLOCK)};

/* Programs are made for memory from address 0 on: move what an instruction reads or writes to where the pool is. */
static int relocate(uint64_t *words) {
  const uint64_t opcode = FIELD(words, OPCODE), memory = FIELD(words, MEMORY_ID);
  const uint64_t mask = (UINT64_C(1) << VTA_MEM_DRAM_BASE_BITS) - 1;
  uint64_t base;
  /* LOAD and STORE; of those without elements only the tokens count. */
  if (opcode > 1 || FIELD(words, X_SIZE) == 0) return 0;
  if (memory >= 6 || om.address % ELEMENT[memory] != 0) return fail("an instruction addresses no memory of the VTA");
  base = FIELD(words, DRAM_BASE) + om.address / ELEMENT[memory];
  if (base > mask) return fail("the VTA's memory is at an address that instructions do not reach");
  /* The field crosses no word: VTA's ISA has it in the first. */
  words[0] = (words[0] & ~(mask << VTA_MEM_DRAM_BASE_LOW)) | base << VTA_MEM_DRAM_BASE_LOW;
  return 0;
}

static int relocate_all(void) {
  uint8_t raw[INSN_BYTES];
  uint64_t words[2];
  for (int32_t number = 0; number < om.model->submission_count; number++) {
    const struct om_submission *one = &om.model->submissions[number];
    for (uint32_t i = 0; i < one->count; i++) {
      uint8_t *place = om.pool + one->instructions + (size_t)i * INSN_BYTES;
      VTAMemCopyToHost(raw, place, sizeof raw);
      memcpy(words, raw, sizeof raw);
      if (relocate(words) != 0) return 1;
      memcpy(raw, words, sizeof raw);
      VTAMemCopyFromHost(place, raw, sizeof raw);
    }
  }
  return 0;
}

static int open_device(void) {
  const double megabytes = (double)om.model->dram / 1048576.0;
#ifndef OM_FOREIGN_DRIVER
  if (strcmp(VTAConfiguration(), om.model->configuration) != 0) {
    return fail("the driver is for %s; the model is compiled for %s", VTAConfiguration(), om.model->configuration);
  }
#endif
  om.device = VTADeviceAlloc();
  if (om.device == NULL) return fail("the driver gives no device; its own line says why");
  om.pool = VTAMemAlloc((size_t)om.model->dram, 1);
  if (om.pool == NULL) return fail("the driver gives no %.1f MiB of memory in one piece", megabytes);
  om.address = VTAMemGetPhyAddr(om.pool);
  if (om.address == 0 || om.address % 4096 != 0) return fail("the driver's memory is not aligned to pages");
#ifdef USE_VTA64
  if (om.address >> 34 != 0) return fail("the driver's memory is above 16 GiB, which instructions do not reach");
#else
  if ((uint64_t)om.address + om.model->dram > UINT64_C(1) << 32) {
    return fail("the driver's memory reaches beyond 4 GiB, which the VTA does not");
  }
#endif
  return 0;
}

/* Opening --------------------------------------------------------------------------------------- */

/* One allocation for all that the host needs; its parts are aligned to 64 bytes. */
static int take_memory(int golden) {
  const struct om_model *model = om.model;
  const uint64_t kept = model->embedded == NULL ? model->constants : 0, sizes[4] = {
    model->arena, model->staging, kept, golden && model->embedded == NULL ? model->golden : 0};
  uint64_t offsets[4], total = 0;
  uint8_t *first;
  for (int i = 0; i < 4; i++) {
    offsets[i] = total;
    total += (sizes[i] + 63) / 64 * 64;
  }
  total += 64;
  om.owned = total <= SIZE_MAX ? malloc((size_t)total) : NULL;
  if (om.owned == NULL) return fail("no memory: the model needs %.1f MiB", (double)total / 1048576.0);
  first = om.owned + (64 - (uintptr_t)om.owned % 64);
  om.arena = first + offsets[0];
  om.staging = first + offsets[1];
  om.constants = first + offsets[2];
  om.golden = first + offsets[3];
  return 0;
}

static void place_tensors(const uint8_t *constants) {
  for (int32_t i = 0; i < om.model->tensor_count; i++) {
    const uint64_t place = om.model->places[i];
    /* Constants are operands only: no step writes to them. */
    om.model->tensors[i].data = om.model->constant[i] ? (void *)(uintptr_t)(constants + place) : om.arena + place;
  }
}

/* Check the content that is part of the program, and place the image; nothing of the rest is copied. */
static int open_embedded(void) {
  struct source source = {NULL, om.model->embedded, "the embedded model", 0};
  const uint8_t *content = source.bytes + HEADER;
  const size_t size = (size_t)(om.model->constants + om.model->image + om.model->golden);
  if (read_header(&source) != 0) return 1;
  if (crc32(0, content, size) != om.model->checksum) return fail("the embedded model is damaged; build it again");
  if (om.model->image > 0) VTAMemCopyFromHost(om.pool, content + om.model->constants, (size_t)om.model->image);
  place_tensors(content);
  om.golden = (uint8_t *)(uintptr_t)(content + om.model->constants + om.model->image);
  return 0;
}

static int open_file(const char *path, int golden) {
  struct source source = {fopen(path, "rb"), NULL, path, 0};
  int failed;
  if (source.file == NULL) return fail("%s does not open; it belongs beside the program", path);
  failed = read_all(&source, golden);
  fclose(source.file);
  place_tensors(om.constants);
  return failed;
}

int om_open(const struct om_model *model, const char *path, int golden) {
  const uint32_t one = 1;
  uint8_t first;
  memcpy(&first, &one, 1);
  om_close();
  om.model = model;
  if (first != 1) return fail("this machine is big-endian; VTA's data is little-endian");
  if (take_memory(golden) != 0) return 1;
  if (model->submission_count > 0 && open_device() != 0) return 1;
  if ((model->embedded != NULL ? open_embedded() : open_file(path, golden)) != 0) return 1;
  if (relocate_all() != 0) return 1;
  if (model->submission_count > 0) sync_range(0, model->dram, 1);
  return 0;
}

void om_close(void) {
  if (om.pool != NULL) VTAMemFree(om.pool);
  if (om.device != NULL) VTADeviceFree(om.device);
  free(om.owned);
  memset(&om, 0, sizeof om);
}

/* Submissions ----------------------------------------------------------------------------------- */

/* A port as matrices of `rows` times `columns` pieces of `space` elements. */
struct form {
  int32_t matrices, rows, columns, space;
};

static struct form form_of(om_in x) {
  struct form form = {1, x->shape[0], x->shape[1], 1};
  if (x->rank == 3) {
    form.matrices = x->shape[0];
    form.rows = x->shape[1];
    form.columns = x->shape[2];
  } else {
    form.space = om_extent(x, 2, x->rank);
  }
  return form;
}

/* Between a tensor and its packed form: blocks of rows, blocks of columns, pixels, and within these rows and columns. */
static size_t convert(om_in x, const struct om_port *port, uint8_t *packed, int pack) {
  const struct form form = form_of(x);
  uint8_t *data = x->data;
  size_t at = 0;
  for (int32_t matrix = 0; matrix < form.matrices; matrix++) {
    for (int32_t r0 = 0; r0 < form.rows; r0 += port->row_block) {
      for (int32_t c0 = 0; c0 < form.columns; c0 += port->column_block) {
        for (int32_t pixel = 0; pixel < form.space; pixel++) {
          for (int32_t row = r0; row < r0 + port->row_block; row++) {
            for (int32_t column = c0; column < c0 + port->column_block; column++, at++) {
              const int inside = row < form.rows && column < form.columns;
              const ptrdiff_t from =
                  (((ptrdiff_t)matrix * form.rows + row) * form.columns + column) * form.space + pixel;
              if (pack) {
                packed[at] = inside ? data[from] : 0;
              } else if (inside) {
                data[from] = packed[at];
              }
            }
          }
        }
      }
    }
  }
  return at;
}

static size_t packed_bytes(om_in x, const struct om_port *port) {
  const struct form form = form_of(x);
  const size_t rows = (size_t)((form.rows + port->row_block - 1) / port->row_block * port->row_block);
  const size_t columns = (size_t)((form.columns + port->column_block - 1) / port->column_block * port->column_block);
  return (size_t)form.matrices * rows * columns * (size_t)form.space;
}

/* Hold an operand against the golden run's, and take that one: so that a flipped bit changes nothing that follows. */
static void hold(om_in x) {
  int8_t *data = x->data;
  const int8_t *golden = (const int8_t *)om.next;
  const int32_t count = om_elements(x);
  for (int32_t i = 0; i < count; i++) {
    const int32_t apart = data[i] > golden[i] ? data[i] - golden[i] : golden[i] - data[i];
    if (apart > 0) om.differ++;
    if (apart > om.steps) om.steps = apart;
  }
  memcpy(data, golden, (size_t)count);
  om.next += count;
}

static int launch(const struct om_submission *one, double *ms) {
  const double begin = now_ms();
  const int status =
      VTADeviceRun(om.device, (vta_phy_addr_t)(om.address + one->instructions), one->count, POLLS);
  *ms = now_ms() - begin;
  om.vta_ms += *ms;
  if (status == 0) return 0;
#ifndef OM_FOREIGN_DRIVER
  return fail("submission %s: %s", one->name, VTADeviceError(om.device));
#else
  return fail("submission %s: VTADeviceRun returned %d%s", one->name, status, status == 1 ? ", it timed out" : "");
#endif
}

/* A line of the self-test about a submission whose results are there. */
static void judge(int32_t number, double ms, int64_t differ, uint32_t crc) {
  const struct om_submission *one = &om.model->submissions[number];
  const char *verdict = crc == one->results ? "right" : om.wrong == 0 ? "WRONG, the first" : "WRONG";
  if (crc != one->results) om.wrong++;
  printf("%4ld  %10.3f ms  %10.3f ms  %-16s %s", (long)number, one->predicted_ms, ms, verdict, one->name);
  if (om.differ > differ) printf(" (%ld operands of the host differ)", (long)(om.differ - differ));
  printf("\n");
}

int om_submit(int32_t number) {
  const struct om_submission *one = &om.model->submissions[number];
  const int64_t differ = om.differ;
  uint32_t crc = 0;
  double ms = 0.0;
  for (int32_t i = 0; i < one->inputs; i++) {
    const struct om_port *port = &om.model->ports[one->first_input + i];
    om_in x = &om.model->tensors[port->tensor];
    size_t bytes;
    if (om.next != NULL) hold(x);
    bytes = convert(x, port, om.staging, 1);
    VTAMemCopyFromHost(om.pool + port->address, om.staging, bytes);
    sync_range(port->address, bytes, 1);
  }
  if (launch(one, &ms) != 0) return 1;
  for (int32_t i = 0; i < one->outputs; i++) {
    const struct om_port *port = &om.model->ports[one->first_output + i];
    om_in x = &om.model->tensors[port->tensor];
    const size_t bytes = packed_bytes(x, port);
    sync_range(port->address, bytes, 0);
    VTAMemCopyToHost(om.staging, om.pool + port->address, bytes);
    convert(x, port, om.staging, 0);
    crc = crc32(crc, x->data, bytes_of(x));
  }
  if (om.next != NULL) judge(number, ms, differ, crc);
  return 0;
}

/* Runs ------------------------------------------------------------------------------------------ */

static int check_input(const struct om_value *input, const float *data, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    if (!isfinite(data[i])) return fail("input %s has infinite values or NaN", input->name);
    if (input->limit > 0.0f && !(data[i] >= 0.0f && data[i] < input->limit && data[i] == rintf(data[i]))) {
      return fail("input %s holds other values than the whole numbers 0 to %.0f", input->name,
                  (double)input->limit - 1.0);
    }
  }
  return 0;
}

int om_run(const float *const *inputs, float *const *outputs) {
  const struct om_model *model = om.model;
  for (int32_t i = 0; i < model->input_count; i++) {
    om_in x = &model->tensors[model->inputs[i].tensor];
    if (check_input(&model->inputs[i], inputs[i], om_elements(x)) != 0) return 1;
    memcpy(x->data, inputs[i], bytes_of(x));
  }
  if (model->run() != 0) return 1;
  for (int32_t i = 0; i < model->output_count; i++) {
    om_in x = &model->tensors[model->outputs[i].tensor];
    memcpy(outputs[i], x->data, bytes_of(x));
  }
  return 0;
}

/* The largest difference of the outputs from the golden ones; infinite where one is NaN and the other is not. */
static double largest_difference(void) {
  double most = 0.0;
  for (int32_t i = 0; i < om.model->output_count; i++) {
    om_in x = &om.model->tensors[om.model->outputs[i].tensor];
    const int32_t count = om_elements(x);
    for (int32_t k = 0; k < count; k++) {
      const float found = ((const float *)x->data)[k];
      float golden;
      double apart;
      memcpy(&golden, om.next + (size_t)k * sizeof golden, sizeof golden);
      apart = found == golden || (found != found && golden != golden) ? 0.0 : fabs((double)found - (double)golden);
      if (apart != apart) apart = HUGE_VAL;
      if (apart > most) most = apart;
    }
    om.next += bytes_of(x);
  }
  return most;
}

int om_self_test(void) {
  const struct om_model *model = om.model;
  const double mib = 1048576.0;
  double begin, whole, difference, predicted = 0.0;
  int right;
  printf("%s on %s: memory of the host %.2f MiB (arena %.2f, constants %.2f), of the VTA %.2f MiB\n", model->name,
         model->accelerator, (double)(model->arena + model->staging + model->constants) / mib,
         (double)model->arena / mib, (double)model->constants / mib, (double)model->dram / mib);
  printf("   #      predicted       measured  results          submission\n");
  om.next = om.golden;
  om.differ = om.steps = om.wrong = 0;
  om.vta_ms = 0.0;
  for (int32_t i = 0; i < model->input_count; i++) {
    om_in x = &model->tensors[model->inputs[i].tensor];
    memcpy(x->data, om.next, bytes_of(x));
    om.next += bytes_of(x);
  }
  begin = now_ms();
  if (model->run() != 0) {
    om.next = NULL;
    return 1;
  }
  whole = now_ms() - begin;
  difference = largest_difference();
  om.next = NULL;
  for (int32_t i = 0; i < model->submission_count; i++) predicted += model->submissions[i].predicted_ms;
  printf("VTA %.3f ms (predicted %.3f), host %.3f ms\n", om.vta_ms, predicted, whole - om.vta_ms);
  printf("operands that the host computes differ in %ld places, by at most %ld steps (allowed: %d)\n", (long)om.differ,
         (long)om.steps, MOST_STEPS);
  printf("outputs differ by at most %.3g (allowed: %.3g)\n", difference, (double)model->tolerance);
  right = om.wrong == 0 && om.steps <= MOST_STEPS && difference <= (double)model->tolerance;
  if (!right) return fail("the self-test failed: %ld submissions are wrong", (long)om.wrong);
  printf("self-test passed\n");
  return 0;
}
