// The permutation kernels: lower `minima[j]` to min over the shingle hashes x of permutation j of x.
//
//   affine32   a_j x + b_j mod 2^32, a_j odd        over x = fmix32(hash)
//   affine64   a_j x + b_j mod 2^64, a_j odd        over x = fmix64(hash)
//   legacy     ((a_j x + b_j mod 2^64) mod 2^61 - 1) mod 2^32     over the 32-bit hash itself
// as datasketch 2.0 defines them, bit for bit. One-permutation hashing needs no kernel of its own (signature.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace mify {

// The kernels take permutations in groups of this many, kept in registers over the whole block of shingles.
inline constexpr size_t kPermGroup = 32;

struct PermuteKernels {
  const char* name;
  // num_perm is a multiple of kPermGroup in all three.
  // The hash here is the low 32 bits of hashes[i], with `fold` the exclusive or of its two halves; mixed[i] becomes
  // its fmix32.
  void (*affine32)(const uint64_t* hashes, size_t count, bool fold, const uint32_t* a, const uint32_t* b,
                   size_t num_perm, uint32_t* mixed, uint32_t* minima);
  void (*affine64)(const uint64_t* x, size_t count, const uint64_t* a, const uint64_t* b, size_t num_perm,
                   uint64_t* minima);
  void (*legacy)(const uint32_t* x, size_t count, const uint64_t* a, const uint64_t* b, size_t num_perm,
                 uint32_t* minima);
};

// The best kernels that this CPU runs, chosen once.
const PermuteKernels& permute_kernels();

}  // namespace mify
