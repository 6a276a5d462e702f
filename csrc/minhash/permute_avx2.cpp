// AVX2 permutation kernels; run only where cpu_features().avx2 holds. See permute.hpp for the mathematics.
#include <immintrin.h>

#include "minhash/permute.hpp"

namespace mify {
namespace {

__m256i load(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}
void store(void* at, __m256i v) {
  _mm256_storeu_si256(static_cast<__m256i*>(at), v);
}

void premix32(const uint64_t* hashes, size_t count, bool fold, uint32_t* out) {
  for (size_t i = 0; i < count; ++i) {
    const uint64_t h = hashes[i];
    uint32_t x = static_cast<uint32_t>(h ^ (fold ? h >> 32 : 0));
    x ^= x >> 16;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    out[i] = x ^ x >> 16;
  }
}

// Four vectors of multipliers, offsets and minima stay in registers while all shingles pass.
void affine32(const uint64_t* hashes, size_t count, bool fold, const uint32_t* a, const uint32_t* b, size_t num_perm,
              uint32_t* mixed, uint32_t* minima) {
  premix32(hashes, count, fold, mixed);
  for (size_t j = 0; j < num_perm; j += kPermGroup) {
    __m256i va[4], vb[4], vm[4];
    for (int v = 0; v < 4; ++v) {
      va[v] = load(a + j + 8 * v);
      vb[v] = load(b + j + 8 * v);
      vm[v] = load(minima + j + 8 * v);
    }
    for (size_t i = 0; i < count; ++i) {
      const __m256i vx = _mm256_set1_epi32(static_cast<int>(mixed[i]));
      for (int v = 0; v < 4; ++v) {
        vm[v] = _mm256_min_epu32(vm[v], _mm256_add_epi32(_mm256_mullo_epi32(va[v], vx), vb[v]));
      }
    }
    for (int v = 0; v < 4; ++v) store(minima + j + 8 * v, vm[v]);
  }
}

// Products mod 2^64 from 32-bit halves. AVX2 only compares signed, so offsets and minima are biased by 2^63.
void affine64(const uint64_t* x, size_t count, const uint64_t* a, const uint64_t* b, size_t num_perm,
              uint64_t* minima) {
  const __m256i bias = _mm256_set1_epi64x(static_cast<long long>(uint64_t{1} << 63));
  for (size_t j = 0; j < num_perm; j += 8) {
    __m256i low[2], high[2], vb[2], vm[2];
    for (int v = 0; v < 2; ++v) {
      low[v] = load(a + j + 4 * v);
      high[v] = _mm256_srli_epi64(low[v], 32);
      vb[v] = _mm256_xor_si256(load(b + j + 4 * v), bias);
      vm[v] = _mm256_xor_si256(load(minima + j + 4 * v), bias);
    }
    for (size_t i = 0; i < count; ++i) {
      const __m256i vx = _mm256_set1_epi64x(static_cast<long long>(x[i]));
      const __m256i vx_high = _mm256_srli_epi64(vx, 32);
      for (int v = 0; v < 2; ++v) {
        const __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(high[v], vx), _mm256_mul_epu32(low[v], vx_high));
        const __m256i product = _mm256_add_epi64(_mm256_mul_epu32(low[v], vx), _mm256_slli_epi64(cross, 32));
        const __m256i value = _mm256_add_epi64(product, vb[v]);
        vm[v] = _mm256_blendv_epi8(vm[v], value, _mm256_cmpgt_epi64(vm[v], value));
      }
    }
    for (int v = 0; v < 2; ++v) store(minima + j + 4 * v, _mm256_xor_si256(vm[v], bias));
  }
}

// v mod p for p = 2^61 - 1 and v < 2^64: y = (v & p) + (v >> 61) <= p + 7, and the remainder is y or y - p. Only its
// low 32 bits are wanted, and those of y - p are those of y + 1 (2^61 is a multiple of 2^32), so no comparison is
// needed.
__m256i legacy_value(__m256i low, __m256i high, __m256i b, __m256i x) {
  const __m256i prime = _mm256_set1_epi64x((1LL << 61) - 1), one = _mm256_set1_epi64x(1);
  const __m256i product = _mm256_add_epi64(_mm256_mul_epu32(low, x), _mm256_slli_epi64(_mm256_mul_epu32(high, x), 32));
  const __m256i v = _mm256_add_epi64(product, b);
  const __m256i y = _mm256_add_epi64(_mm256_and_si256(v, prime), _mm256_srli_epi64(v, 61));
  return _mm256_add_epi64(y, _mm256_srli_epi64(_mm256_add_epi64(y, one), 61));
}

void legacy(const uint32_t* x, size_t count, const uint64_t* a, const uint64_t* b, size_t num_perm, uint32_t* minima) {
  for (size_t j = 0; j < num_perm; j += 8) {
    __m256i low[2], high[2], vb[2];
    for (int v = 0; v < 2; ++v) {
      low[v] = load(a + j + 4 * v);
      high[v] = _mm256_srli_epi64(low[v], 32);
      vb[v] = load(b + j + 4 * v);
    }
    __m256i vm = _mm256_set1_epi32(-1);
    for (size_t i = 0; i < count; ++i) {
      const __m256i vx = _mm256_set1_epi64x(static_cast<long long>(x[i]));
      const __m256i first = legacy_value(low[0], high[0], vb[0], vx);
      const __m256i second = legacy_value(low[1], high[1], vb[1], vx);
      // The low halves of the eight lanes, in the order 0 1 4 5 2 3 6 7; put right after the loop.
      const __m256i values = _mm256_castps_si256(
          _mm256_shuffle_ps(_mm256_castsi256_ps(first), _mm256_castsi256_ps(second), _MM_SHUFFLE(2, 0, 2, 0)));
      vm = _mm256_min_epu32(vm, values);
    }
    vm = _mm256_permute4x64_epi64(vm, _MM_SHUFFLE(3, 1, 2, 0));
    store(minima + j, _mm256_min_epu32(vm, load(minima + j)));
  }
}

}  // namespace

extern const PermuteKernels kPermuteAvx2;
const PermuteKernels kPermuteAvx2 = {"avx2", affine32, affine64, legacy};

}  // namespace mify
