#include "minhash/permute.hpp"

#include "cpu.hpp"
#include "text/mix.hpp"

namespace mify {

#if defined(MIFY_X86)
extern const PermuteKernels kPermuteAvx2;
extern const PermuteKernels kPermuteAvx512;
#endif

namespace {

constexpr uint64_t kMersenne61 = (uint64_t{1} << 61) - 1;

void affine32(const uint64_t* hashes, size_t count, bool fold, const uint32_t* a, const uint32_t* b, size_t num_perm,
              uint32_t* mixed, uint32_t* minima) {
  for (size_t i = 0; i < count; ++i) {
    const uint64_t h = hashes[i];
    mixed[i] = fmix32(static_cast<uint32_t>(fold ? h ^ h >> 32 : h));
    for (size_t j = 0; j < num_perm; ++j) {
      const uint32_t value = a[j] * mixed[i] + b[j];
      if (value < minima[j]) minima[j] = value;
    }
  }
}

void affine64(const uint64_t* x, size_t count, const uint64_t* a, const uint64_t* b, size_t num_perm,
              uint64_t* minima) {
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j < num_perm; ++j) {
      const uint64_t value = a[j] * x[i] + b[j];
      if (value < minima[j]) minima[j] = value;
    }
  }
}

void legacy(const uint32_t* x, size_t count, const uint64_t* a, const uint64_t* b, size_t num_perm, uint32_t* minima) {
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j < num_perm; ++j) {
      const uint32_t value = static_cast<uint32_t>((a[j] * x[i] + b[j]) % kMersenne61);
      if (value < minima[j]) minima[j] = value;
    }
  }
}

constexpr PermuteKernels kScalar = {"scalar", affine32, affine64, legacy};

}  // namespace

const PermuteKernels& permute_kernels() {
#if defined(MIFY_X86)
  if (cpu_features().avx512) return kPermuteAvx512;
  if (cpu_features().avx2) return kPermuteAvx2;
#endif
  return kScalar;
}

}  // namespace mify
