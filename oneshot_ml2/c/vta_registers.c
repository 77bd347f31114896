/* Registers through /dev/mem, past the caches. One process at a time: two would start runs into each other. */
#define _POSIX_C_SOURCE 200809L

#include "vta_registers.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int lock_of(int file, uint64_t address) {
  struct flock lock;
  memset(&lock, 0, sizeof lock);
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = (off_t)address;
  lock.l_len = 1;
  return fcntl(file, F_SETLK, &lock);
}

void *vta_registers_open(uint64_t address, uint32_t bytes) {
  /* The file stays open: the lock goes with it. */
  static int file = -1;
  void *registers;
  if (file < 0) file = open("/dev/mem", O_RDWR | O_SYNC);
  if (file < 0) {
    fprintf(stderr, "vta: /dev/mem does not open (%s): run as root\n", strerror(errno));
    return NULL;
  }
  if (lock_of(file, address) != 0) {
    fprintf(stderr, "vta: another process has the device; wait for it, or end it\n");
    return NULL;
  }
  registers = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)address);
  if (registers == MAP_FAILED) {
    fprintf(stderr, "vta: registers at 0x%lx cannot be mapped (%s)\n", (unsigned long)address, strerror(errno));
    return NULL;
  }
  return registers;
}

void vta_registers_close(void *registers, uint32_t bytes) { munmap(registers, bytes); }

void vta_register_write(void *registers, uint32_t offset, uint32_t value) {
  *(volatile uint32_t *)((char *)registers + offset) = value;
}

uint32_t vta_register_read(void *registers, uint32_t offset) {
  return *(volatile uint32_t *)((char *)registers + offset);
}
