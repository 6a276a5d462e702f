// The two digests that datasketch users hash shingles with.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mify {

// The first 8 bytes of the SHA-1 digest, read little-endian. By SHA-NI where cpu_features().sha holds.
uint64_t sha1_prefix64(const uint8_t* data, size_t size);

// XXH32 with seed 0 (Collet).
uint32_t xxh32(const uint8_t* data, size_t size);

}  // namespace mify
