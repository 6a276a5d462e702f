// The two digests that datasketch users hash shingles with.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mify {

// The first 8 bytes of the SHA-1 digest, read little-endian. By SHA-NI where cpu_features().sha holds.
uint64_t sha1_prefix64(const uint8_t* data, size_t size);

// sha1_prefix64 of messages that each lie in a buffer with at least 64 readable bytes from their beginning on; several
// at once where the CPU has SHA-NI, whose instructions have a long latency.
void sha1_prefix64_many(const uint8_t* const* messages, const size_t* sizes, size_t count, uint64_t* out);

// XXH32 with seed 0 (Collet).
uint32_t xxh32(const uint8_t* data, size_t size);

}  // namespace mify
