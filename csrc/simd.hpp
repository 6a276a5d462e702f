// Vectors of floats by the compiler's own vector types: 8 lanes where the file is compiled for AVX2, 4 elsewhere
// (SSE2, NEON). Everything here has internal linkage, so files compiled for different instruction sets never share
// code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mify {
namespace {

#if defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));

inline Vec load(const float* at) {
  Vec v;
  std::memcpy(&v, at, sizeof v);
  return v;
}
inline void store(float* at, Vec v) {
  std::memcpy(at, &v, sizeof v);
}
inline Vec splat(float x) {
  return x - Vec{};
}
inline Vec max(Vec a, Vec b) {
  return a > b ? a : b;
}
// The lanes are added in a fixed tree, so a sum does not depend on who computes it.
inline float sum(Vec v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}
inline float largest(Vec v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof v);
  float most = lane[0];
  for (int i = 1; i < kLanes; ++i) most = lane[i] > most ? lane[i] : most;
  return most;
}

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

// 2^x to 1.5 units in the last place for -126 <= x <= 127; 0 below, and NaN stays NaN. Cephes' exp2f: the nearest
// integer goes into the exponent, a polynomial of degree 6 takes the fraction in [-1/2, 1/2].
inline Vec exp2(Vec x) {
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const Vec clamped = x < splat(-126.0f) ? splat(-126.0f) : x;
  const Vec shifted = clamped + magic;
  const Vec f = clamped - (shifted - magic);
  Vec p = splat(1.535336188319500e-4f);
  p = p * f + splat(1.339887440266574e-3f);
  p = p * f + splat(9.618437357674640e-3f);
  p = p * f + splat(5.550332471162809e-2f);
  p = p * f + splat(2.402264791363012e-1f);
  p = p * f + splat(6.931472028550421e-1f);
  p = p * f + splat(1.0f);
  IntVec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  IntVec scale = (bits << 23) + (127 << 23);
  Vec power;
  std::memcpy(&power, &scale, sizeof power);
  return x < splat(-126.0f) ? Vec{} : p * power;
}

}  // namespace
}  // namespace mify
