/* A board's registers: the only way to them, so that a model of the hardware can stand behind the drivers in tests. */
#ifndef VTA_REGISTERS_H
#define VTA_REGISTERS_H

#include <stdint.h>

/* Make `bytes` of registers from a physical address on accessible; NULL if that fails, with a line on stderr. */
void *vta_registers_open(uint64_t address, uint32_t bytes);
void vta_registers_close(void *registers, uint32_t bytes);
void vta_register_write(void *registers, uint32_t offset, uint32_t value);
uint32_t vta_register_read(void *registers, uint32_t offset);

#endif
