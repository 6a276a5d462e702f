// fp8_rows for whatever instruction set the including file is compiled for: plain loops that the compiler vectorizes.
// Everything has internal linkage, so that files compiled for different sets never share code.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "quantize/fp8_rows.hpp"

namespace mify {
namespace {

constexpr float kLargest = 448.0f;
constexpr int kMantissaDropped = 23 - 3;

inline float widen(uint16_t bf16) {
  return std::bit_cast<float>(static_cast<uint32_t>(bf16) << 16);
}
inline float widen(float value) {
  return value;
}

inline uint16_t to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Saturating, to nearest even; not for NaN. Below 2^-6 codes are multiples of 2^-9, which is the last place of 2^14:
// adding that rounds to them. Above, the exponent's bias falls from 127 to 7, and half a last place is added before
// what is dropped. Both sides are computed and one masked out: GCC 12 vectorizes a choice for AVX-512
// alone.
inline uint8_t to_e4m3(float value) {
  const int32_t bits = std::bit_cast<int32_t>(value);
  const int32_t magnitude = std::min(bits & 0x7FFFFFFF, std::bit_cast<int32_t>(kLargest));
  const int32_t small =
      std::bit_cast<int32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) - std::bit_cast<int32_t>(0x1p14f);
  const int32_t half = (1 << (kMantissaDropped - 1)) - 1 + (magnitude >> kMantissaDropped & 1);
  const int32_t normal = (magnitude - ((127 - 7) << 23) + half) >> kMantissaDropped;
  const int32_t below = (magnitude - std::bit_cast<int32_t>(0x1p-6f)) >> 31;  // all ones below 2^-6
  return static_cast<uint8_t>((small & below) | (normal & ~below) | (bits >> 24 & 0x80));
}

// Magnitudes of floats are ordered as their bits are, with NaN above infinity: one integer maximum finds both.
template <class Value>
float largest(const Value* row, int64_t columns) {
  using Bits = std::conditional_t<sizeof(Value) == 2, int16_t, int32_t>;
  constexpr Bits mask = std::numeric_limits<Bits>::max();
  Bits most = 0;
  for (int64_t j = 0; j < columns; ++j) {
    const Bits bits = std::bit_cast<Bits>(row[j]) & mask;
    most = bits > most ? bits : most;
  }
  return widen(std::bit_cast<Value>(most));
}

template <class Value>
void encode(const Value* __restrict row, int64_t columns, float scale, uint8_t* __restrict codes) {
  for (int64_t j = 0; j < columns; ++j) {
    codes[j] = to_e4m3(widen(row[j]) / scale);
  }
}

template <class Value>
bool quantize(const Fp8Rows& op, int64_t begin, int64_t end) {
  bool finite = true;
  for (int64_t i = begin; i < end; ++i) {
    const Value* row = static_cast<const Value*>(op.values) + i * op.columns;
    const float amax = largest(row, op.columns);
    if (!std::isfinite(amax)) {
      finite = false;
      continue;
    }
    // Engines multiply by the rounded scale, so it is the one to divide by.
    const uint16_t rounded = to_bf16(amax / kLargest);
    op.scales[i] = rounded ? rounded : to_bf16(1.0f);
    encode(row, op.columns, widen(op.scales[i]), op.codes + i * op.columns);
  }
  return finite;
}

inline bool fp8_rows_kernel(const Fp8Rows& op, int64_t begin, int64_t end) {
  return op.bf16 ? quantize<uint16_t>(op, begin, end) : quantize<float>(op, begin, end);
}

}  // namespace
}  // namespace mify
