/* SHA-256 (FIPS 180-4) and HMAC with it (RFC 2104). */
#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_BYTES 32

struct sha256 {
  uint32_t state[8];
  uint64_t bytes;
  uint8_t block[64];
};

void sha256_begin(struct sha256 *hash);
void sha256_add(struct sha256 *hash, const void *data, size_t size);
void sha256_end(struct sha256 *hash, uint8_t digest[SHA256_BYTES]);

void sha256_of(const void *data, size_t size, uint8_t digest[SHA256_BYTES]);
void hmac_sha256(const void *key, size_t key_size, const void *data, size_t size, uint8_t digest[SHA256_BYTES]);

/* Whether two digests are equal, in a time that does not tell where they differ. */
int sha256_equal(const uint8_t *one, const uint8_t *two);

#endif
