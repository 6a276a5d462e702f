// The integer mixers that hashing here is made of.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace mify {

// The hashes are defined on little-endian words.
static_assert(std::endian::native == std::endian::little, "mify's hashes assume a little-endian machine");

inline uint64_t load64(const uint8_t* at) {
  uint64_t value;
  std::memcpy(&value, at, 8);
  return value;
}

inline uint32_t load32(const uint8_t* at) {
  uint32_t value;
  std::memcpy(&value, at, 4);
  return value;
}

// MurmurHash3's finalizers (Appleby), bijections with full avalanche.
inline uint32_t fmix32(uint32_t h) {
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  return h ^ h >> 16;
}

inline uint64_t fmix64(uint64_t h) {
  h ^= h >> 33;
  h *= 0xFF51AFD7ED558CCDull;
  h ^= h >> 33;
  h *= 0xC4CEB9FE1A85EC53ull;
  return h ^ h >> 33;
}

__extension__ typedef unsigned __int128 Wide;

// wyhash's mixer (Wang Yi): the two halves of the 128-bit product, folded.
inline uint64_t mum(uint64_t a, uint64_t b) {
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace mify
