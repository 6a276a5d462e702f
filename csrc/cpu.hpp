// What this CPU can run, asked once. Kernels are chosen by these flags at run time, never by -march=native.
#pragma once

#include <string>
#include <vector>

namespace mify {

struct CpuFeatures {
  bool avx2 = false;    // AVX2 with BMI1/2, LZCNT and POPCNT
  bool fma = false;     // avx2 with fused multiply-add
  bool avx512 = false;  // AVX-512 F, BW, DQ and VL on top of avx2
  bool sha = false;     // SHA-1/SHA-256 instructions
};

// The features of the CPU, less those switched off by the environment variable MIFY_CPU_DISABLE
// (a comma-separated list, e.g. "avx512,sha"), which is how the tests reach every path on one machine.
const CpuFeatures& cpu_features();

}  // namespace mify
