// Weights to E4M3 with one bf16 scale a row: scale = bf16(amax / 448), code = e4m3(clamp(x / scale, -448, 448)), both
// rounded to nearest even. The bits are those of mify/quantization/scheme.py in plain torch.
#pragma once

#include <cstdint>

namespace mify {

// One chunk of a (rows, columns) matrix, dense. Values are fp32, or the upper halves of fp32 (bf16).
struct Fp8Rows {
  const void* values;
  bool bf16;
  int64_t columns;
  uint8_t* codes;    // (rows, columns) E4M3
  uint16_t* scales;  // (rows) bf16; 1 where the scale would be 0
};

// Whether every value is finite; where one is not, that row's codes and scale say nothing.
bool fp8_rows(const Fp8Rows& op, int64_t rows, unsigned threads);

// The code of one instruction set, for rows [begin, end).
using Fp8RowsKernel = bool (*)(const Fp8Rows& op, int64_t begin, int64_t end);

}  // namespace mify
