// AVX-512 permutation kernels; run only where cpu_features().avx512 holds. See permute.hpp for the mathematics.
// GCC 12 takes its own AVX-512 intrinsics to read uninitialized values (bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "minhash/permute.hpp"

namespace mify {
namespace {

uint32_t mix(uint64_t hash, bool fold) {
  uint32_t x = static_cast<uint32_t>(hash ^ (fold ? hash >> 32 : 0));
  x ^= x >> 16;
  x *= 0x85EBCA6Bu;
  x ^= x >> 13;
  x *= 0xC2B2AE35u;
  return x ^ x >> 16;
}

// The first group mixes the hashes on its way, `kAhead` of them before they are needed. The loop is bound by the two
// ports for 512-bit vectors: 32 of their operations for 128 permutations (a vpmulld is two), 16 cycles, 5.5 ns at
// 2.9 GHz. Mixing in scalar registers, and broadcasting from memory, leaves both ports alone.
constexpr size_t kAhead = 8;

template <int kVectors, bool kMix>
void affine32_group(const uint64_t* hashes, size_t count, bool fold, const uint32_t* a, const uint32_t* b,
                    uint32_t* mixed, uint32_t* minima) {
  __m512i va[kVectors], vb[kVectors], vm[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    va[v] = _mm512_loadu_si512(a + 16 * v);
    vb[v] = _mm512_loadu_si512(b + 16 * v);
    vm[v] = _mm512_loadu_si512(minima + 16 * v);
  }
  if constexpr (kMix) {
    for (size_t i = 0; i < kAhead && i < count; ++i) mixed[i] = mix(hashes[i], fold);
  }
  for (size_t i = 0; i < count; ++i) {
    if constexpr (kMix) {
      if (i + kAhead < count) mixed[i + kAhead] = mix(hashes[i + kAhead], fold);
    }
    const __m512i vx = _mm512_set1_epi32(static_cast<int>(mixed[i]));
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      vm[v] = _mm512_min_epu32(vm[v], _mm512_add_epi32(_mm512_mullo_epi32(va[v], vx), vb[v]));
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) _mm512_storeu_si512(minima + 16 * v, vm[v]);
}

void affine32(const uint64_t* hashes, size_t count, bool fold, const uint32_t* a, const uint32_t* b, size_t num_perm,
              uint32_t* mixed, uint32_t* minima) {
  constexpr size_t kWide = 128;
  const bool wide = num_perm >= kWide;
  (wide ? affine32_group<8, true> : affine32_group<2, true>)(hashes, count, fold, a, b, mixed, minima);
  size_t j = wide ? kWide : kPermGroup;
  for (; j + kWide <= num_perm; j += kWide) {
    affine32_group<8, false>(hashes, count, fold, a + j, b + j, mixed, minima + j);
  }
  for (; j < num_perm; j += kPermGroup) {
    affine32_group<2, false>(hashes, count, fold, a + j, b + j, mixed, minima + j);
  }
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
const PermuteKernels kPermuteAvx512 = {"avx512", affine32, affine64, legacy};

}  // namespace mify
