// AVX-512 permutation kernels; run only where cpu_features().avx512 holds. See permute.hpp for the mathematics.
// GCC 12 takes its own AVX-512 intrinsics to read uninitialized values (bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "minhash/permute.hpp"

namespace mify {
namespace {

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

template <int kVectors>
void affine32_group(const uint32_t* x, size_t count, const uint32_t* a, const uint32_t* b, uint32_t* minima) {
  __m512i va[kVectors], vb[kVectors], vm[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    va[v] = _mm512_loadu_si512(a + 16 * v);
    vb[v] = _mm512_loadu_si512(b + 16 * v);
    vm[v] = _mm512_loadu_si512(minima + 16 * v);
  }
  for (size_t i = 0; i < count; ++i) {
    const __m512i vx = _mm512_set1_epi32(static_cast<int>(x[i]));
    for (int v = 0; v < kVectors; ++v) {
      vm[v] = _mm512_min_epu32(vm[v], _mm512_add_epi32(_mm512_mullo_epi32(va[v], vx), vb[v]));
    }
  }
  for (int v = 0; v < kVectors; ++v) _mm512_storeu_si512(minima + 16 * v, vm[v]);
}

void affine32(const uint32_t* x, size_t count, const uint32_t* a, const uint32_t* b, size_t num_perm,
              uint32_t* minima) {
  size_t j = 0;
  for (; j + 128 <= num_perm; j += 128) affine32_group<8>(x, count, a + j, b + j, minima + j);
  for (; j < num_perm; j += kPermGroup) affine32_group<2>(x, count, a + j, b + j, minima + j);
}

void affine64(const uint64_t* x, size_t count, const uint64_t* a, const uint64_t* b, size_t num_perm,
              uint64_t* minima) {
  for (size_t j = 0; j < num_perm; j += 32) {
    __m512i va[4], vb[4], vm[4];
    for (int v = 0; v < 4; ++v) {
      va[v] = _mm512_loadu_si512(a + j + 8 * v);
      vb[v] = _mm512_loadu_si512(b + j + 8 * v);
      vm[v] = _mm512_loadu_si512(minima + j + 8 * v);
    }
    for (size_t i = 0; i < count; ++i) {
      const __m512i vx = _mm512_set1_epi64(static_cast<long long>(x[i]));
      for (int v = 0; v < 4; ++v) {
        vm[v] = _mm512_min_epu64(vm[v], _mm512_add_epi64(_mm512_mullo_epi64(va[v], vx), vb[v]));
      }
    }
    for (int v = 0; v < 4; ++v) _mm512_storeu_si512(minima + j + 8 * v, vm[v]);
  }
}

void legacy(const uint32_t* x, size_t count, const uint64_t* a, const uint64_t* b, size_t num_perm, uint32_t* minima) {
  const __m512i prime = _mm512_set1_epi64((1LL << 61) - 1), one = _mm512_set1_epi64(1);
  for (size_t j = 0; j < num_perm; j += 8) {
    const __m512i low = _mm512_loadu_si512(a + j), high = _mm512_srli_epi64(low, 32), vb = _mm512_loadu_si512(b + j);
    __m256i vm = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(minima + j));
    for (size_t i = 0; i < count; ++i) {
      const __m512i vx = _mm512_set1_epi64(static_cast<long long>(x[i]));
      const __m512i product =
          _mm512_add_epi64(_mm512_mul_epu32(low, vx), _mm512_slli_epi64(_mm512_mul_epu32(high, vx), 32));
      const __m512i v = _mm512_add_epi64(product, vb);
      const __m512i y = _mm512_add_epi64(_mm512_and_si512(v, prime), _mm512_srli_epi64(v, 61));
      const __m512i value = _mm512_add_epi64(y, _mm512_srli_epi64(_mm512_add_epi64(y, one), 61));
      vm = _mm256_min_epu32(vm, _mm512_cvtepi64_epi32(value));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(minima + j), vm);
  }
}

}  // namespace

extern const PermuteKernels kPermuteAvx512;
const PermuteKernels kPermuteAvx512 = {"avx512", premix32, affine32, affine64, legacy};

}  // namespace mify
