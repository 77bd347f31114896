/* Contents by their SHA-256, in memory of a fixed size; the oldest make room for new ones. */
#ifndef POOL_H
#define POOL_H

#include <stdint.h>

#include "sha256.h"

struct pool_entry {
  uint8_t hash[SHA256_BYTES];
  uint64_t begin;
  uint32_t size;
};

struct pool {
  uint8_t *bytes;
  uint64_t size, head;
  /* A ring, from the oldest on. */
  struct pool_entry *entries;
  uint32_t capacity, first, count;
};

/* 0 without memory for it. A child process sees what is put in later. */
int pool_open(struct pool *pool, uint64_t size);
void pool_close(struct pool *pool);

/* Contents of that hash and size, NULL if they are not there. They stay until the next `pool_put`. */
const uint8_t *pool_get(const struct pool *pool, const uint8_t hash[SHA256_BYTES], uint32_t size);

/* Keep contents of a hash, which they have: as they are kept, or NULL where the pool is smaller than they are. */
const uint8_t *pool_put(struct pool *pool, const uint8_t hash[SHA256_BYTES], const uint8_t *data, uint32_t size);

#endif
