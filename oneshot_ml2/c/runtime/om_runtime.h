/* Runs an exported model: its host's steps in C, its submissions by VTA's driver interface.
 *
 * All memory is taken by om_open. One model can be open at a time.
 */
#ifndef OM_RUNTIME_H
#define OM_RUNTIME_H

#include "om_tensor.h"

/* A tensor that a submission reads or writes: its number, where in the VTA's memory it is packed, and how: rows and
 * columns are cut into blocks of so many. */
struct om_port {
  int32_t tensor;
  uint32_t address;
  int32_t row_block, column_block;
};

/* What is launched together: the address and number of its instructions, the range of its ports, what the timing model
 * says that it takes, and the checksum of the golden run's results. */
struct om_submission {
  const char *name;
  uint32_t instructions, count;
  int32_t first_input, inputs, first_output, outputs;
  double predicted_ms;
  uint32_t results;
};

/* `limit`: what whole numbers of an input are below; 0: any real numbers. */
struct om_value {
  const char *name;
  int32_t tensor;
  float limit;
};

struct om_model {
  const char *name, *accelerator, *configuration;
  /* Tensors; where each lies, in bytes, in the arena or, if `constant` says so, in the constants. */
  struct om_tensor *tensors;
  const uint64_t *places;
  const uint8_t *constant;
  int32_t tensor_count;
  const struct om_value *inputs, *outputs;
  int32_t input_count, output_count;
  const struct om_port *ports;
  const struct om_submission *submissions;
  int32_t submission_count;
  /* Bytes of the host's arena, of what a port takes packed, and of the VTA's memory. */
  uint64_t arena, staging, dram;
  /* model.bin: its parts in order, in bytes, and the checksum of all of them. `image`: of the VTA's memory, from address
   * 0 on; `golden`: inputs, what submissions get from the host, outputs. */
  uint64_t constants, image, golden;
  uint32_t checksum;
  /* The content of model.bin where it is part of the program; NULL: it is a file. */
  const void *embedded;
  /* By how much real outputs of the golden run may differ. */
  float tolerance;
  /* The steps in their order; 0, or what om_submit returns where that is not 0. */
  int (*run)(void);
};

/* Take memory, read model.bin from `path` and place the programs; `golden`: keep what om_self_test needs.
 * 0, or 1: om_error says why. */
int om_open(const struct om_model *model, const char *path, int golden);
/* Run once: a float array for each input and output, in the model's order. 0, or 1: om_error says why. */
int om_run(const float *const *inputs, float *const *outputs);
/* Run the golden input, and print what is right and how long it takes. 0: all right. */
int om_self_test(void);
void om_close(void);
const char *om_error(void);

/* For the generated steps. */
int om_submit(int32_t number);

#endif
