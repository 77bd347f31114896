/* See frame.h. */
#include "frame.h"

uint32_t get32(const uint8_t *at) {
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

uint64_t get64(const uint8_t *at) { return (uint64_t)get32(at) | (uint64_t)get32(at + 4) << 32; }

void put32(uint8_t *at, uint32_t value) {
  for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (8 * i));
}

void put64(uint8_t *at, uint64_t value) {
  put32(at, (uint32_t)value);
  put32(at + 4, (uint32_t)(value >> 32));
}

uint32_t crc32_of(const uint8_t *data, size_t size) {
  /* Four bytes a step: table[k] is of a byte that k more follow. */
  static uint32_t table[4][256];
  uint32_t crc = 0xffffffffu;
  if (table[0][1] == 0) {
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
      table[0][i] = value;
    }
    for (int k = 1; k < 4; k++) {
      for (int i = 0; i < 256; i++) table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
    }
  }
  for (; size >= 4; size -= 4, data += 4) {
    crc ^= get32(data);
    crc = table[3][crc & 255] ^ table[2][crc >> 8 & 255] ^ table[1][crc >> 16 & 255] ^ table[0][crc >> 24];
  }
  for (; size > 0; size--, data++) crc = crc >> 8 ^ table[0][(crc ^ *data) & 255];
  return ~crc;
}

enum frame_state frame_read(const uint8_t head[FRAME_HEAD], struct frame *frame) {
  if (get32(head) != FRAME_MAGIC || get32(head + 20) != crc32_of(head, 20)) return FRAME_BAD;
  frame->kind = head[5];
  frame->id = get32(head + 8);
  frame->length = get32(head + 12);
  frame->crc = get32(head + 16);
  return head[4] == FRAME_VERSION ? FRAME_GOOD : FRAME_OTHER_VERSION;
}

void frame_write(uint8_t head[FRAME_HEAD], uint8_t kind, uint32_t id, const uint8_t *body, uint32_t length) {
  put32(head, FRAME_MAGIC);
  head[4] = FRAME_VERSION;
  head[5] = kind;
  head[6] = head[7] = 0;
  put32(head + 8, id);
  put32(head + 12, length);
  put32(head + 16, crc32_of(body, length));
  put32(head + 20, crc32_of(head, 20));
}
