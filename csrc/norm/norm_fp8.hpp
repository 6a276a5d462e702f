// RMSNorm, alone or of a sum, that writes FP8 in two layouts; see kernels/norm/norm_fp8.py for what is computed.
#pragma once

#include <cstdint>

namespace mify {

// Everything by device address; strides in elements; dense where none is given. `size` is a multiple of 128.
struct NormFp8Params {
  const void* x = nullptr;         // (rows, size) bf16, rows at multiples of 16 bytes
  const void* residual = nullptr;  // likewise, or null
  void* total = nullptr;           // (rows, size) bf16: x + residual; unused without a residual
  const void* weight = nullptr;    // (size,) bf16, or fp32 where weight_is_float
  float* inverse = nullptr;        // (rows,) 1 / rms
  uint8_t* data = nullptr;         // (rows, size) E4M3
  float* scale = nullptr;          // (size / 128, rows); unused with a delayed scale
  uint8_t* data_t = nullptr;       // (size, rows_padded) E4M3, zero beyond the rows
  float* scale_t = nullptr;        // (rows_padded / 128, size); unused with a delayed scale
  const float* delayed = nullptr;  // one scale for all, or null for blocks
  float* largest = nullptr;        // (rows_padded / 128 * cluster,) the largest |y| of a block, with a delayed scale
  int64_t x_row = 0, residual_row = 0;
  int64_t rows = 0, rows_padded = 0;
  int32_t size = 0;
  int32_t cluster = 1;  // blocks that share 128 rows, 1 to 8
  int32_t weight_is_float = 0;
  float eps = 0.0f;
};

// Blocks of 128 features that one thread block may hold, and thread blocks of a cluster (the portable number).
inline constexpr int kNormFp8MostHeld = 6, kNormFp8MostCluster = 8;

// How many thread blocks share 128 rows of `size` features: as many as leave each at most three blocks of 128 (two such
// thread blocks fit on a multiprocessor), at most eight; 0 where the rows are too long for that.
constexpr int norm_fp8_cluster(int64_t size) {
  const int64_t blocks = size / 128;
  const int64_t wanted = (blocks + 2) / 3;
  const int64_t cluster = wanted < kNormFp8MostCluster ? wanted : kNormFp8MostCluster;
  return blocks > kNormFp8MostCluster * kNormFp8MostHeld ? 0 : static_cast<int>(cluster);
}

// Dynamic shared memory of a thread block.
constexpr int norm_fp8_shared_bytes(int64_t size, int cluster) {
  const int64_t held = (size / 128 + cluster - 1) / cluster;
  return static_cast<int>(held * 128 * 128 * 2 + (3 * 128 + 4 * 128) * 4);
}

// On the current device's stream; a cudaError_t as int. The caller has checked everything.
int launch_norm_fp8(const NormFp8Params& params, void* stream);

}  // namespace mify
