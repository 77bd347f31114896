/* Frames of the server's protocol; docs/server.md describes them. All numbers are little-endian. */
#ifndef FRAME_H
#define FRAME_H

#include <stddef.h>
#include <stdint.h>

#define FRAME_MAGIC 0x53415456u
#define FRAME_VERSION 1u
#define FRAME_HEAD 24u

/* Contents travel in pieces of at most CONTENT_BYTES; what stands beside them in a frame has room in BODY_BYTES. */
#define CONTENT_BYTES (256u << 10)
#define BODY_BYTES (CONTENT_BYTES + (16u << 10))
/* Places that one request names, at most. */
#define MOST_MOVES 256u

enum frame_kind {
  HELLO = 1,
  PROVE,
  ALLOCATE,
  PLACE,
  PUT,
  RUN,
  GET,
  RESET,
  LOG,
  KINDS,
  ANSWER = 0x80,
  QUEUED = 0xfe,
  FAILED = 0xff
};

/* What an answer of kind FAILED begins with. */
enum frame_error {
  E_DAMAGED = 1,
  E_MALFORMED,
  E_NOT_ALLOWED,
  E_HANG,
  E_CRASH,
  E_TIMED_OUT,
  E_REFUSED,
  E_FULL,
  E_NO_DRIVER
};

struct frame {
  uint8_t kind;
  uint32_t id, length, crc;
};

/* How a header is: one that is bad says nothing of where the next frame begins. */
enum frame_state { FRAME_GOOD, FRAME_BAD, FRAME_OTHER_VERSION };

enum frame_state frame_read(const uint8_t head[FRAME_HEAD], struct frame *frame);
void frame_write(uint8_t head[FRAME_HEAD], uint8_t kind, uint32_t id, const uint8_t *body, uint32_t length);

/* CRC-32 as of zlib and Ethernet. */
uint32_t crc32_of(const uint8_t *data, size_t size);

uint32_t get32(const uint8_t *at);
uint64_t get64(const uint8_t *at);
void put32(uint8_t *at, uint32_t value);
void put64(uint8_t *at, uint64_t value);

#endif
