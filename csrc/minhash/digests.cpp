#include "minhash/digests.hpp"

#include <bit>
#include <cstring>

#include "cpu.hpp"
#include "text/mix.hpp"

namespace mify {

#if defined(MIFY_X86)
void sha1_blocks_sha(uint32_t state[5], const uint8_t* blocks, size_t count);
void sha1_pair_sha(const uint8_t* const messages[2], const size_t sizes[2], uint64_t out[2]);
#endif

namespace {

// FIPS 180-4, section 6.1.2.
void sha1_blocks_scalar(uint32_t state[5], const uint8_t* blocks, size_t count) {
  for (; count > 0; --count, blocks += 64) {
    uint32_t w[80];
    for (int t = 0; t < 16; ++t) w[t] = __builtin_bswap32(load32(blocks + 4 * t));
    for (int t = 16; t < 80; ++t) w[t] = std::rotl(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int t = 0; t < 80; ++t) {
      uint32_t f, k;
      if (t < 20) {
        f = (b & c) | (~b & d), k = 0x5A827999;
      } else if (t < 40) {
        f = b ^ c ^ d, k = 0x6ED9EBA1;
      } else if (t < 60) {
        f = (b & c) | (b & d) | (c & d), k = 0x8F1BBCDC;
      } else {
        f = b ^ c ^ d, k = 0xCA62C1D6;
      }
      const uint32_t next = std::rotl(a, 5) + f + e + k + w[t];
      e = d, d = c, c = std::rotl(b, 30), b = a, a = next;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
  }
}

using Sha1Blocks = void (*)(uint32_t state[5], const uint8_t* blocks, size_t count);

Sha1Blocks choose_sha1() {
#if defined(MIFY_X86)
  if (cpu_features().sha) return sha1_blocks_sha;
#endif
  return sha1_blocks_scalar;
}

}  // namespace

uint64_t sha1_prefix64(const uint8_t* data, size_t size) {
  static const Sha1Blocks blocks = choose_sha1();
  uint32_t state[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
  const size_t whole = size / 64, rest = size % 64;
  if (whole > 0) blocks(state, data, whole);
  uint8_t tail[128] = {};
  if (rest > 0) std::memcpy(tail, data + 64 * whole, rest);
  tail[rest] = 0x80;
  const size_t tail_blocks = rest < 56 ? 1 : 2;
  const uint64_t bits = __builtin_bswap64(uint64_t{size} * 8);
  std::memcpy(tail + 64 * tail_blocks - 8, &bits, 8);
  blocks(state, tail, tail_blocks);
  return uint64_t{__builtin_bswap32(state[1])} << 32 | __builtin_bswap32(state[0]);
}

void sha1_prefix64_many(const uint8_t* const* messages, const size_t* sizes, size_t count, uint64_t* out) {
  size_t i = 0;
#if defined(MIFY_X86)
  if (cpu_features().sha) {
    // Messages that fit one block with their padding go in pairs; a pair is the next two of them.
    size_t waiting = count;  // none
    for (; i < count; ++i) {
      if (sizes[i] > 55) {
        out[i] = sha1_prefix64(messages[i], sizes[i]);
      } else if (waiting == count) {
        waiting = i;
      } else {
        const uint8_t* const pair[2] = {messages[waiting], messages[i]};
        const size_t pair_sizes[2] = {sizes[waiting], sizes[i]};
        uint64_t digests[2];
        sha1_pair_sha(pair, pair_sizes, digests);
        out[waiting] = digests[0];
        out[i] = digests[1];
        waiting = count;
      }
    }
    if (waiting < count) out[waiting] = sha1_prefix64(messages[waiting], sizes[waiting]);
    return;
  }
#endif
  for (; i < count; ++i) out[i] = sha1_prefix64(messages[i], sizes[i]);
}

uint32_t xxh32(const uint8_t* data, size_t size) {
  constexpr uint32_t p1 = 2654435761u, p2 = 2246822519u, p3 = 3266489917u, p4 = 668265263u, p5 = 374761393u;
  const uint8_t* const end = data + size;
  uint32_t h;
  if (size >= 16) {
    uint32_t lane[4] = {p1 + p2, p2, 0, 0u - p1};
    for (; end - data >= 16; data += 16) {
      for (int i = 0; i < 4; ++i) lane[i] = std::rotl(lane[i] + load32(data + 4 * i) * p2, 13) * p1;
    }
    h = std::rotl(lane[0], 1) + std::rotl(lane[1], 7) + std::rotl(lane[2], 12) + std::rotl(lane[3], 18);
  } else {
    h = p5;
  }
  h += static_cast<uint32_t>(size);
  for (; end - data >= 4; data += 4) h = std::rotl(h + load32(data) * p3, 17) * p4;
  for (; data < end; ++data) h = std::rotl(h + *data * p5, 11) * p1;
  h ^= h >> 15;
  h *= p2;
  h ^= h >> 13;
  h *= p3;
  return h ^ h >> 16;
}

}  // namespace mify
