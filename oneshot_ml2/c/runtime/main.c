/* Runs an exported model on a file, or its self-test. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define DATA "model.bin"

/* model.bin beside the program. */
static const char *data_path(const char *program) {
  static char path[4096];
  const char *slash = strrchr(program, '/');
  const size_t length = slash == NULL ? 0 : (size_t)(slash - program) + 1;
  if (length + sizeof DATA > sizeof path) return DATA;
  memcpy(path, program, length);
  memcpy(path + length, DATA, sizeof DATA);
  return path;
}

static int usage(void) {
  fprintf(stderr, "usage: model --self-test | model IN.bin OUT.bin\n");
  fprintf(stderr, "IN.bin, OUT.bin: float32, little-endian, one tensor after another:\n");
  for (int32_t i = 0; i < MODEL.input_count + MODEL.output_count; i++) {
    const int is_input = i < MODEL.input_count;
    const struct om_value *value = is_input ? &MODEL.inputs[i] : &MODEL.outputs[i - MODEL.input_count];
    const struct om_tensor *x = &MODEL.tensors[value->tensor];
    fprintf(stderr, "  %s %s:", is_input ? "input" : "output", value->name);
    for (int32_t axis = 0; axis < x->rank; axis++) fprintf(stderr, " %ld", (long)x->shape[axis]);
    if (value->limit > 0.0f) fprintf(stderr, ", whole numbers below %.0f", (double)value->limit);
    fprintf(stderr, "\n");
  }
  return 2;
}

static int failed(const char *why, const char *path) {
  fprintf(stderr, "model: %s%s%s\n", path, *path == '\0' ? "" : " ", why);
  return 1;
}

static int read_file(const char *path, void *to, size_t bytes) {
  FILE *file = fopen(path, "rb");
  size_t count;
  int more;
  if (file == NULL) return failed("does not open", path);
  count = fread(to, 1, bytes, file);
  more = fgetc(file) != EOF;
  fclose(file);
  if (count == bytes && !more) return 0;
  fprintf(stderr, "model: %s has %s than the %lu bytes of the inputs\n", path, more ? "more" : "less",
          (unsigned long)bytes);
  return 1;
}

static int write_file(const char *path, const void *from, size_t bytes) {
  FILE *file = fopen(path, "wb");
  size_t count;
  if (file == NULL) return failed("cannot be written", path);
  count = fwrite(from, 1, bytes, file);
  if (fclose(file) != 0 || count != bytes) return failed("cannot be written whole", path);
  return 0;
}

static float in[MODEL_INPUT_FLOATS], out[MODEL_OUTPUT_FLOATS];

static int run_file(const char *from, const char *to) {
  const float *inputs[MODEL_INPUTS];
  float *outputs[MODEL_OUTPUTS];
  size_t at = 0;
  for (int32_t i = 0; i < MODEL_INPUTS; i++) {
    inputs[i] = in + at;
    at += (size_t)om_elements(&MODEL.tensors[MODEL.inputs[i].tensor]);
  }
  at = 0;
  for (int32_t i = 0; i < MODEL_OUTPUTS; i++) {
    outputs[i] = out + at;
    at += (size_t)om_elements(&MODEL.tensors[MODEL.outputs[i].tensor]);
  }
  if (read_file(from, in, sizeof in) != 0) return 1;
  if (om_run(inputs, outputs) != 0) return failed(om_error(), "");
  return write_file(to, out, sizeof out);
}

int main(int count, char **arguments) {
  const int test = count == 2 && strcmp(arguments[1], "--self-test") == 0;
  int result;
  if (!test && (count != 3 || arguments[1][0] == '-')) return usage();
  if (om_open(&MODEL, data_path(arguments[0]), test) != 0) {
    result = failed(om_error(), "");
  } else if (test) {
    result = om_self_test() == 0 ? 0 : failed(om_error(), "");
  } else {
    result = run_file(arguments[1], arguments[2]);
  }
  om_close();
  return result;
}
