/* VTA's driver interface as a table: of a driver that is linked into the server, or of a library that is loaded. */
#ifndef DRIVER_API_H
#define DRIVER_API_H

#include "vta_driver.h"

struct driver_api {
  VTADeviceHandle (*device_alloc)(void);
  void (*device_free)(VTADeviceHandle);
  int (*run)(VTADeviceHandle, vta_phy_addr_t, uint32_t, uint32_t);
  void *(*alloc)(size_t, int);
  void (*release)(void *);
  vta_phy_addr_t (*address)(void *);
  void (*from_host)(void *, const void *, size_t);
  void (*to_host)(void *, const void *, size_t);
  void (*flush)(void *, vta_phy_addr_t, int);
  void (*invalidate)(void *, vta_phy_addr_t, int);
  /* Only our own libraries have these; NULL elsewhere. */
  const char *(*configuration)(void);
  const char *(*error)(VTADeviceHandle);
  uint64_t (*cycles)(VTADeviceHandle);
};

/* Fill the table in. `path`: of a library, NULL where the driver is linked. 0: it cannot be used, and `why` says why. */
int driver_open(struct driver_api *api, const char *path, char *why, size_t why_size);

/* Whether the driver is a library that has to be named. */
int driver_needs_path(void);

#endif
