// The work of gqa_paged_cpu.hpp, compiled once for every instruction set; see simd.hpp for why all is internal.
#pragma once

#include <cmath>

#include "attention/gqa_paged_cpu.hpp"
#include "simd.hpp"

namespace mify {
namespace {

typedef uint8_t ByteVec __attribute__((vector_size(kLanes)));

// kLanes stored values as floats.
inline Vec widen(const float* at) {
  return load(at);
}
// E4M3: sign, 4 bits of exponent with bias 7, 3 of mantissa; 0x7f is NaN, there is no infinity. Its bits moved to those
// of a float give a number too small by 2^120, subnormals included.
inline Vec widen(const uint8_t* at) {
  ByteVec bytes;
  std::memcpy(&bytes, at, sizeof bytes);
  const IntVec wide = __builtin_convertvector(bytes, IntVec);
  const IntVec magnitude = wide & 0x7f;
  IntVec bits = magnitude << 20;
  Vec value;
  std::memcpy(&value, &bits, sizeof value);
  value *= splat(0x1p120f);
  std::memcpy(&bits, &value, sizeof bits);
  bits |= (wide & 0x80) << 24;
  bits |= magnitude == 0x7f ? IntVec{} + 0x7fc00000 : IntVec{};
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Lane i of the result is the sum of the lanes of v[i].
inline Vec sums(const Vec* v) {
#if defined(__AVX2__)
  Vec pairs[4], fours[2];
  for (int i = 0; i < 4; ++i) {
    pairs[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
               __builtin_shufflevector(v[2 * i], v[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int i = 0; i < 2; ++i) {
    fours[i] = __builtin_shufflevector(pairs[2 * i], pairs[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
               __builtin_shufflevector(pairs[2 * i], pairs[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  return __builtin_shufflevector(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
#else
  Vec pairs[2];
  for (int i = 0; i < 2; ++i) {
    pairs[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 4, 2, 6) +
               __builtin_shufflevector(v[2 * i], v[2 * i + 1], 1, 5, 3, 7);
  }
  return __builtin_shufflevector(pairs[0], pairs[1], 0, 1, 4, 5) +
         __builtin_shufflevector(pairs[0], pairs[1], 2, 3, 6, 7);
#endif
}

// The first of the keys or values of page `column` of a sequence, for one head.
template <class T>
inline const T* page_of(const PagedProblem& p, const PagedCache& cache, int64_t sequence, int64_t column, int kv_head) {
  const int64_t page = p.table == nullptr ? sequence : p.table[sequence * p.table_stride + column];
  return static_cast<const T*>(cache.data) + page * cache.page_stride + kv_head * cache.head_stride;
}

// scores[r, j] = q_r · k_j for the keys of one page, `Rows` rows; up to kLanes - 1 scores behind are overwritten.
template <int Rows, class T>
inline void page_scores(const T* keys, ptrdiff_t stride, int64_t count, int dim, const float* const* q, float* scores,
                        ptrdiff_t scores_stride) {
  constexpr int kKeys = kLanes / Rows;
  for (int64_t first = 0; first < count; first += kKeys) {
    const T* row[kKeys];
    for (int j = 0; j < kKeys; ++j) row[j] = keys + (first + j < count ? first + j : count - 1) * stride;
    Vec products[kLanes] = {};
    for (int d = 0; d < dim; d += kLanes) {
      Vec x[Rows];
      for (int r = 0; r < Rows; ++r) x[r] = load(q[r] + d);
#pragma GCC unroll 8
      for (int j = 0; j < kKeys; ++j) {
        const Vec k = widen(row[j] + d);
#pragma GCC unroll 2
        for (int r = 0; r < Rows; ++r) products[r * kKeys + j] += x[r] * k;
      }
    }
    const Vec all = sums(products);
    for (int r = 0; r < Rows; ++r) {
      std::memcpy(scores + r * scores_stride + first, reinterpret_cast<const char*>(&all) + r * kKeys * sizeof(float),
                  kKeys * sizeof(float));
    }
  }
}

// Scores to weights, in place; the reciprocal of their sum is returned.
inline float soften(float* scores, int64_t count, float factor) {
  for (int64_t j = count; j % kLanes != 0; ++j) scores[j] = -INFINITY;
  Vec most = splat(-INFINITY);
  for (int64_t j = 0; j < count; j += kLanes) most = max(most, load(scores + j));
  const Vec shift = splat(largest(most)), times = splat(factor);
  Vec total = {};
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec e = exp2((load(scores + j) - shift) * times);
    store(scores + j, e);
    total += e;
  }
  return 1.0f / sum(total);
}

// out_r = factor_r * sum over j of weights[r, j] v_j, for kWide vectors of columns of the head.
template <int Rows, int Wide, class T>
inline void weighted(const PagedProblem& p, int64_t sequence, int kv_head, int64_t length, const float* weights,
                     ptrdiff_t weights_stride, const float* factor, float* const* out, int from) {
  Vec total[Rows][Wide] = {};
  for (int64_t start = 0, column = 0; start < length; start += p.page_size, ++column) {
    const T* values = page_of<T>(p, p.values, sequence, column, kv_head) + from;
    const int64_t count = length - start < p.page_size ? length - start : p.page_size;
    for (int64_t j = 0; j < count; ++j, values += p.values.slot_stride) {
      Vec v[Wide];
      for (int w = 0; w < Wide; ++w) v[w] = widen(values + w * kLanes);
      for (int r = 0; r < Rows; ++r) {
        const Vec weight = splat(weights[r * weights_stride + start + j]);
#pragma GCC unroll 4
        for (int w = 0; w < Wide; ++w) total[r][w] += weight * v[w];
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int w = 0; w < Wide; ++w) store(out[r] + from + w * kLanes, total[r][w] * splat(factor[r]));
  }
}

template <int Rows, class T>
void rows(const PagedProblem& p, int64_t sequence, int64_t token, int head, int64_t length, float* scores,
          int64_t scores_stride) {
  const int dim = p.head_dim, kv_head = head / (p.query_heads / p.kv_heads);
  const float* q[Rows];
  float* out[Rows];
  for (int r = 0; r < Rows; ++r) q[r] = p.q.at(token, head + r), out[r] = p.out.at(token, head + r);
  if (length == 0) {
    for (int r = 0; r < Rows; ++r) std::memset(out[r], 0, sizeof(float) * dim);
    return;
  }
  for (int64_t start = 0, column = 0; start < length; start += p.page_size, ++column) {
    const int64_t count = length - start < p.page_size ? length - start : p.page_size;
    page_scores<Rows>(page_of<T>(p, p.keys, sequence, column, kv_head), p.keys.slot_stride, count, dim, q,
                      scores + start, scores_stride);
  }
  float factor[Rows];
  const float key_scale = p.key_scale == nullptr ? 1.0f : p.key_scale[kv_head];
  const float value_scale = p.value_scale == nullptr ? 1.0f : p.value_scale[kv_head];
  for (int r = 0; r < Rows; ++r) {
    factor[r] = value_scale * soften(scores + r * scores_stride, length, p.scale * key_scale * kLog2E);
  }
  int from = 0;
  for (; from + 4 * kLanes <= dim; from += 4 * kLanes) {
    weighted<Rows, 4, T>(p, sequence, kv_head, length, scores, scores_stride, factor, out, from);
  }
  for (; from < dim; from += kLanes) {
    weighted<Rows, 1, T>(p, sequence, kv_head, length, scores, scores_stride, factor, out, from);
  }
}

template <class T>
void run_as(const PagedProblem& p, int64_t sequence, int kv_head, float* scores, int64_t scores_stride) {
  const int group = p.query_heads / p.kv_heads;
  const int64_t begin = p.bounds == nullptr ? sequence : p.bounds[sequence];
  const int64_t end = p.bounds == nullptr ? sequence + 1 : p.bounds[sequence + 1];
  for (int64_t token = begin; token < end; ++token) {
    const int64_t length = p.lengths[sequence] - (end - 1 - token);
    int head = kv_head * group;
    for (; head + 2 <= (kv_head + 1) * group; head += 2) {
      rows<2, T>(p, sequence, token, head, length, scores, scores_stride);
    }
    if (head < (kv_head + 1) * group) rows<1, T>(p, sequence, token, head, length, scores, scores_stride);
  }
}

void run_paged(const PagedProblem& p, int64_t sequence, int kv_head, float* scores, int64_t scores_stride) {
  if (p.fp8) {
    run_as<uint8_t>(p, sequence, kv_head, scores, scores_stride);
  } else {
    run_as<float>(p, sequence, kv_head, scores, scores_stride);
  }
}

}  // namespace
}  // namespace mify
