// SHA-1 by SHA-NI. Runs only where cpu_features().sha holds.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace mify {

void sha1_blocks_sha(uint32_t state[5], const uint8_t* blocks, size_t count) {
  const __m128i big_endian = _mm_set_epi64x(0x0001020304050607LL, 0x08090A0B0C0D0E0FLL);
  __m128i abcd = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state)), 0x1B);
  __m128i e0 = _mm_set_epi32(static_cast<int>(state[4]), 0, 0, 0);
  for (; count > 0; --count, blocks += 64) {
    const __m128i abcd_saved = abcd, e_saved = e0;
    __m128i w[4], e1 = abcd;
    for (int i = 0; i < 4; ++i) {
      w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks + 16 * i)), big_endian);
    }
// Four rounds with message words `now` (already scheduled) and round function `f`; e is summed with them first.
#define MIFY_ROUNDS(first, now, f)                                                     \
  {                                                                                    \
    const __m128i e = (first) ? _mm_add_epi32(e0, now) : _mm_sha1nexte_epu32(e1, now); \
    e1 = abcd;                                                                         \
    abcd = _mm_sha1rnds4_epu32(abcd, e, f);                                            \
  }
// Schedules w[t] for t >= 16, four words at once, into the place of the oldest.
#define MIFY_SCHEDULE(a, b, c, d) a = _mm_sha1msg2_epu32(_mm_xor_si128(_mm_sha1msg1_epu32(a, b), c), d)
    MIFY_ROUNDS(true, w[0], 0)
    MIFY_ROUNDS(false, w[1], 0)
    MIFY_ROUNDS(false, w[2], 0)
    MIFY_ROUNDS(false, w[3], 0)
    MIFY_SCHEDULE(w[0], w[1], w[2], w[3]);
    MIFY_ROUNDS(false, w[0], 0)
    MIFY_SCHEDULE(w[1], w[2], w[3], w[0]);
    MIFY_ROUNDS(false, w[1], 1)
    MIFY_SCHEDULE(w[2], w[3], w[0], w[1]);
    MIFY_ROUNDS(false, w[2], 1)
    MIFY_SCHEDULE(w[3], w[0], w[1], w[2]);
    MIFY_ROUNDS(false, w[3], 1)
    MIFY_SCHEDULE(w[0], w[1], w[2], w[3]);
    MIFY_ROUNDS(false, w[0], 1)
    MIFY_SCHEDULE(w[1], w[2], w[3], w[0]);
    MIFY_ROUNDS(false, w[1], 1)
    MIFY_SCHEDULE(w[2], w[3], w[0], w[1]);
    MIFY_ROUNDS(false, w[2], 2)
    MIFY_SCHEDULE(w[3], w[0], w[1], w[2]);
    MIFY_ROUNDS(false, w[3], 2)
    MIFY_SCHEDULE(w[0], w[1], w[2], w[3]);
    MIFY_ROUNDS(false, w[0], 2)
    MIFY_SCHEDULE(w[1], w[2], w[3], w[0]);
    MIFY_ROUNDS(false, w[1], 2)
    MIFY_SCHEDULE(w[2], w[3], w[0], w[1]);
    MIFY_ROUNDS(false, w[2], 2)
    MIFY_SCHEDULE(w[3], w[0], w[1], w[2]);
    MIFY_ROUNDS(false, w[3], 3)
    MIFY_SCHEDULE(w[0], w[1], w[2], w[3]);
    MIFY_ROUNDS(false, w[0], 3)
    MIFY_SCHEDULE(w[1], w[2], w[3], w[0]);
    MIFY_ROUNDS(false, w[1], 3)
    MIFY_SCHEDULE(w[2], w[3], w[0], w[1]);
    MIFY_ROUNDS(false, w[2], 3)
    MIFY_SCHEDULE(w[3], w[0], w[1], w[2]);
    MIFY_ROUNDS(false, w[3], 3)
#undef MIFY_ROUNDS
#undef MIFY_SCHEDULE
    e0 = _mm_sha1nexte_epu32(e1, e_saved);
    abcd = _mm_add_epi32(abcd, abcd_saved);
  }
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_shuffle_epi32(abcd, 0x1B));
  state[4] = static_cast<uint32_t>(_mm_extract_epi32(e0, 3));
}

// From 64 - size on: what to keep of a message of that size, and the bit that ends it.
struct Padding {
  uint8_t keep[128], mark[128];
};
static constexpr Padding kPadding = [] {
  Padding padding{};
  for (int i = 0; i < 64; ++i) padding.keep[i] = 0xFF;
  padding.mark[64] = 0x80;
  return padding;
}();

// The first eight digest bytes of two messages of at most 55 bytes, each with 64 readable bytes: one block each, and
// the rounds of the two in turn, since each waits for the one before it.
void sha1_pair_sha(const uint8_t* const messages[2], const size_t sizes[2], uint64_t out[2]) {
  const __m128i big_endian = _mm_set_epi64x(0x0001020304050607LL, 0x08090A0B0C0D0E0FLL);
  const __m128i initial =
      _mm_set_epi32(0x67452301, static_cast<int>(0xEFCDAB89), static_cast<int>(0x98BADCFE), 0x10325476);
  const __m128i initial_e = _mm_set_epi32(static_cast<int>(0xC3D2E1F0), 0, 0, 0);
  __m128i w[2][4], abcd[2] = {initial, initial}, e[2] = {initial_e, initial_e};
  for (int m = 0; m < 2; ++m) {
    const uint8_t* const keep = kPadding.keep + 64 - sizes[m];
    const uint8_t* const mark = kPadding.mark + 64 - sizes[m];
    for (int i = 0; i < 4; ++i) {
      const auto load = [i](const uint8_t* at) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16 * i));
      };
      const __m128i padded = _mm_or_si128(_mm_and_si128(load(messages[m]), load(keep)), load(mark));
      w[m][i] = _mm_shuffle_epi8(padded, big_endian);
    }
    w[m][3] = _mm_or_si128(w[m][3], _mm_cvtsi32_si128(static_cast<int>(8 * sizes[m])));
  }
#define MIFY_ROUNDS(first, now, f)                                                                       \
  for (int m = 0; m < 2; ++m) {                                                                          \
    const __m128i sum = (first) ? _mm_add_epi32(e[m], w[m][now]) : _mm_sha1nexte_epu32(e[m], w[m][now]); \
    e[m] = abcd[m];                                                                                      \
    abcd[m] = _mm_sha1rnds4_epu32(abcd[m], sum, f);                                                      \
  }
#define MIFY_SCHEDULE(a, b, c, d)                                                                        \
  for (int m = 0; m < 2; ++m) {                                                                          \
    w[m][a] = _mm_sha1msg2_epu32(_mm_xor_si128(_mm_sha1msg1_epu32(w[m][a], w[m][b]), w[m][c]), w[m][d]); \
  }
  MIFY_ROUNDS(true, 0, 0)
  MIFY_ROUNDS(false, 1, 0)
  MIFY_ROUNDS(false, 2, 0)
  MIFY_ROUNDS(false, 3, 0)
  MIFY_SCHEDULE(0, 1, 2, 3)
  MIFY_ROUNDS(false, 0, 0)
  MIFY_SCHEDULE(1, 2, 3, 0)
  MIFY_ROUNDS(false, 1, 1)
  MIFY_SCHEDULE(2, 3, 0, 1)
  MIFY_ROUNDS(false, 2, 1)
  MIFY_SCHEDULE(3, 0, 1, 2)
  MIFY_ROUNDS(false, 3, 1)
  MIFY_SCHEDULE(0, 1, 2, 3)
  MIFY_ROUNDS(false, 0, 1)
  MIFY_SCHEDULE(1, 2, 3, 0)
  MIFY_ROUNDS(false, 1, 1)
  MIFY_SCHEDULE(2, 3, 0, 1)
  MIFY_ROUNDS(false, 2, 2)
  MIFY_SCHEDULE(3, 0, 1, 2)
  MIFY_ROUNDS(false, 3, 2)
  MIFY_SCHEDULE(0, 1, 2, 3)
  MIFY_ROUNDS(false, 0, 2)
  MIFY_SCHEDULE(1, 2, 3, 0)
  MIFY_ROUNDS(false, 1, 2)
  MIFY_SCHEDULE(2, 3, 0, 1)
  MIFY_ROUNDS(false, 2, 2)
  MIFY_SCHEDULE(3, 0, 1, 2)
  MIFY_ROUNDS(false, 3, 3)
  MIFY_SCHEDULE(0, 1, 2, 3)
  MIFY_ROUNDS(false, 0, 3)
  MIFY_SCHEDULE(1, 2, 3, 0)
  MIFY_ROUNDS(false, 1, 3)
  MIFY_SCHEDULE(2, 3, 0, 1)
  MIFY_ROUNDS(false, 2, 3)
  MIFY_SCHEDULE(3, 0, 1, 2)
  MIFY_ROUNDS(false, 3, 3)
#undef MIFY_ROUNDS
#undef MIFY_SCHEDULE
  for (int m = 0; m < 2; ++m) {
    const __m128i state = _mm_add_epi32(abcd[m], initial);
    const uint32_t a = static_cast<uint32_t>(_mm_extract_epi32(state, 3));
    const uint32_t b = static_cast<uint32_t>(_mm_extract_epi32(state, 2));
    out[m] = uint64_t{__builtin_bswap32(b)} << 32 | __builtin_bswap32(a);
  }
}

}  // namespace mify
