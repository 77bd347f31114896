/* See pool.h. Contents lie in the order in which they came, around a ring of bytes. */
#define _GNU_SOURCE

#include "pool.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Contents are some pages at least, or they are not worth a hash. */
#define LEAST_AVERAGE 16384u

int pool_open(struct pool *pool, uint64_t size) {
  memset(pool, 0, sizeof *pool);
  pool->capacity = (uint32_t)(size / LEAST_AVERAGE) + 1;
  if (size == 0) return 1;
  pool->bytes = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (pool->bytes == MAP_FAILED) return 0;
  pool->size = size;
  pool->entries = calloc(pool->capacity, sizeof *pool->entries);
  return pool->entries != NULL;
}

void pool_close(struct pool *pool) {
  if (pool->size > 0) munmap(pool->bytes, (size_t)pool->size);
  free(pool->entries);
}

static struct pool_entry *entry(const struct pool *pool, uint32_t number) {
  return &pool->entries[(pool->first + number) % pool->capacity];
}

static void drop_oldest(struct pool *pool) {
  pool->first = (pool->first + 1) % pool->capacity;
  pool->count--;
}

const uint8_t *pool_get(const struct pool *pool, const uint8_t hash[SHA256_BYTES], uint32_t size) {
  for (uint32_t i = 0; i < pool->count; i++) {
    const struct pool_entry *one = entry(pool, i);
    if (one->size == size && memcmp(one->hash, hash, SHA256_BYTES) == 0) return pool->bytes + one->begin;
  }
  return NULL;
}

const uint8_t *pool_put(struct pool *pool, const uint8_t hash[SHA256_BYTES], const uint8_t *data, uint32_t size) {
  const uint8_t *there = pool_get(pool, hash, size);
  struct pool_entry *one;
  if (there != NULL || size > pool->size) return there;
  if (size > pool->size - pool->head) {
    /* Around: what lies behind is older than all that lies in front. */
    while (pool->count > 0 && entry(pool, 0)->begin >= pool->head) drop_oldest(pool);
    pool->head = 0;
  }
  while (pool->count > 0) {
    const struct pool_entry *oldest = entry(pool, 0);
    int apart = oldest->begin >= pool->head + size || oldest->begin + oldest->size <= pool->head;
    if (apart && pool->count < pool->capacity) break;
    drop_oldest(pool);
  }
  one = entry(pool, pool->count++);
  memcpy(one->hash, hash, SHA256_BYTES);
  one->begin = pool->head;
  one->size = size;
  memcpy(pool->bytes + pool->head, data, size);
  pool->head += size;
  return pool->bytes + one->begin;
}
