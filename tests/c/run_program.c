/* Runs programs that a file holds, through VTA's driver interface, and writes what they leave.
 *
 *   program FILE: for each, 3 numbers of 32 bits (bytes of its memory, where its instructions begin there, how many
 *   they are) and the memory, made for address 0x1000. Standard output: for each, what the run returned, 32 bits, and
 *   the memory.
 */
#include <stdio.h>
#include <stdlib.h>

#include "vta_driver.h"

#define WAIT 1000u

int main(int count, char **words) {
  uint32_t head[3];
  FILE *file = count == 2 ? fopen(words[1], "rb") : NULL;
  if (file == NULL) return 2;
  while (fread(head, sizeof head, 1, file) == 1) {
    VTADeviceHandle device = VTADeviceAlloc();
    uint8_t *memory = VTAMemAlloc(head[0], 1), *host = malloc(head[0]);
    uint32_t result;
    if (device == NULL || memory == NULL || host == NULL || VTAMemGetPhyAddr(memory) != 0x1000) return 3;
    if (fread(host, 1, head[0], file) != head[0]) return 4;
    VTAMemCopyFromHost(memory, host, head[0]);
    result = (uint32_t)VTADeviceRun(device, VTAMemGetPhyAddr(memory) + head[1], head[2], WAIT);
    VTAMemCopyToHost(host, memory, head[0]);
    if (fwrite(&result, sizeof result, 1, stdout) != 1 || fwrite(host, 1, head[0], stdout) != head[0]) return 5;
    free(host);
    VTAMemFree(memory);
    VTADeviceFree(device);
  }
  fclose(file);
  return 0;
}
