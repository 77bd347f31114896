/* A driver library that is loaded by its path. See driver_api.h. */
#define _POSIX_C_SOURCE 200809L

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "driver_api.h"

int driver_needs_path(void) { return 1; }

/* dlsym's pointer to data, as one to a function. */
static int find(void *library, const char *name, void *function) {
  void *symbol = dlsym(library, name);
  memcpy(function, &symbol, sizeof symbol);
  return symbol != NULL;
}

int driver_open(struct driver_api *api, const char *path, char *why, size_t why_size) {
  const struct {
    const char *name;
    void *function;
    int needed;
  } symbols[] = {
      {"VTADeviceAlloc", &api->device_alloc, 1},   {"VTADeviceFree", &api->device_free, 1},
      {"VTADeviceRun", &api->run, 1},              {"VTAMemAlloc", &api->alloc, 1},
      {"VTAMemFree", &api->release, 1},            {"VTAMemGetPhyAddr", &api->address, 1},
      {"VTAMemCopyFromHost", &api->from_host, 1},  {"VTAMemCopyToHost", &api->to_host, 1},
      {"VTAFlushCache", &api->flush, 0},           {"VTAInvalidateCache", &api->invalidate, 0},
      {"VTAConfiguration", &api->configuration, 0}, {"VTADeviceError", &api->error, 0},
      {"VTADeviceCycles", &api->cycles, 0},
  };
  void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (library == NULL) {
    snprintf(why, why_size, "%s", dlerror());
    return 0;
  }
  for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
    if (find(library, symbols[i].name, symbols[i].function) || !symbols[i].needed) continue;
    snprintf(why, why_size, "%s lacks %s: it is no VTA driver library", path, symbols[i].name);
    return 0;
  }
  return 1;
}
