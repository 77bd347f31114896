/* The interface that every VTA library offers, with the names and types of VTA's include/vta/driver.h.
 *
 * Below it stand what the libraries built from this folder offer besides; no caller may count on those elsewhere.
 */
#ifndef VTA_DRIVER_H
#define VTA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Physical addresses: 32 bits, or 64 in a library that is built with -DUSE_VTA64. */
#ifdef USE_VTA64
typedef uint64_t vta_phy_addr_t;
#else
typedef uint32_t vta_phy_addr_t;
#endif

typedef void *VTADeviceHandle;

/* What VTADeviceRun returns: the third is our own, for programs that no device may be given. */
#define VTA_RUN_DONE 0
#define VTA_RUN_TIMEOUT 1
#define VTA_RUN_REFUSED 2

VTADeviceHandle VTADeviceAlloc(void);
void VTADeviceFree(VTADeviceHandle device);

/* Run `count` instructions of 16 bytes at a physical address; look for their end at most `wait` times. */
int VTADeviceRun(VTADeviceHandle device, vta_phy_addr_t insns, uint32_t count, uint32_t wait);

/* Physically contiguous memory, aligned to pages of 4,096 bytes; NULL if there is none. */
void *VTAMemAlloc(size_t size, int cached);
void VTAMemFree(void *buffer);
/* Of an allocation's first byte, or of any other within one; 0 of what is not from VTAMemAlloc. */
vta_phy_addr_t VTAMemGetPhyAddr(void *buffer);
void VTAMemCopyFromHost(void *target, const void *source, size_t size);
void VTAMemCopyToHost(void *target, const void *source, size_t size);

/* Write a range back before a run; drop it after one. Needed where the port is not coherent. */
void VTAFlushCache(void *buffer, vta_phy_addr_t address, int size);
void VTAInvalidateCache(void *buffer, vta_phy_addr_t address, int size);

/* Our own: what the library is built for; why the last run was not VTA_RUN_DONE, "" if it was; clock cycles of the
 * last run, 0 where nothing counts them. */
const char *VTAConfiguration(void);
const char *VTADeviceError(VTADeviceHandle device);
uint64_t VTADeviceCycles(VTADeviceHandle device);

#ifdef __cplusplus
}
#endif

#endif
