// The work of gqa_cpu.hpp, compiled once for every instruction set. It uses no template of the standard library, whose
// copies the linker could share between files compiled for different instruction sets.
#pragma once

#include <cmath>

#include "attention/gqa_cpu.hpp"
#include "simd.hpp"

namespace mify {
namespace {

constexpr int kPanel = 2 * kLanes;  // columns of a register tile
constexpr int kTileRows = 6;        // 6 x 2 vectors of sums, 2 of the panel and 1 broadcast fill 15 of 16 registers
constexpr int kBlock = 48;          // query rows at a time

int64_t panels(int64_t columns) {
  return (columns + kPanel - 1) / kPanel;
}

// C[r, :] (+)= sum over k of A[r, k] * B[k, :] for `Rows` rows and kPanel columns.
// A is addressed by two strides, so it may be read transposed; B is a panel of (depth, kPanel).
template <int Rows>
inline void tile(int64_t depth, const float* a, ptrdiff_t a_row, ptrdiff_t a_depth, const float* b, float* c,
                 ptrdiff_t c_row, bool add) {
  Vec sums[Rows][2];
  for (int r = 0; r < Rows; ++r) {
    sums[r][0] = add ? load(c + r * c_row) : Vec{};
    sums[r][1] = add ? load(c + r * c_row + kLanes) : Vec{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const Vec b0 = load(b + k * kPanel);
    const Vec b1 = load(b + k * kPanel + kLanes);
    const float* ak = a + k * a_depth;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec x = splat(ak[r * a_row]);
      sums[r][0] += x * b0;
      sums[r][1] += x * b1;
    }
  }
  for (int r = 0; r < Rows; ++r) {
    store(c + r * c_row, sums[r][0]);
    store(c + r * c_row + kLanes, sums[r][1]);
  }
}

// C (rows, columns) (+)= A (rows, depth) * B, where B is `columns / kPanel` panels of (depth, kPanel), `b_panel` apart.
void product(int64_t rows, int64_t columns, int64_t depth, const float* a, ptrdiff_t a_row, ptrdiff_t a_depth,
             const float* b, ptrdiff_t b_panel, float* c, ptrdiff_t c_row, bool add) {
  for (int64_t n = 0; n < columns; n += kPanel, b += b_panel) {
    int64_t m = 0;
    for (; m + kTileRows <= rows; m += kTileRows) {
      tile<kTileRows>(depth, a + m * a_row, a_row, a_depth, b, c + m * c_row + n, c_row, add);
    }
    const float* am = a + m * a_row;
    float* cm = c + m * c_row + n;
    switch (rows - m) {
      case 5:
        tile<5>(depth, am, a_row, a_depth, b, cm, c_row, add);
        break;
      case 4:
        tile<4>(depth, am, a_row, a_depth, b, cm, c_row, add);
        break;
      case 3:
        tile<3>(depth, am, a_row, a_depth, b, cm, c_row, add);
        break;
      case 2:
        tile<2>(depth, am, a_row, a_depth, b, cm, c_row, add);
        break;
      case 1:
        tile<1>(depth, am, a_row, a_depth, b, cm, c_row, add);
        break;
      default:
        break;
    }
  }
}

// Panels of the transposed matrix: panel p holds rows p*kPanel... of x as its columns, (head_dim, kPanel); zeros
// beyond.
void pack_transposed(const float* x, ptrdiff_t stride, int64_t rows, int head_dim, float* to) {
  for (int64_t first = 0; first < rows; first += kPanel, to += head_dim * kPanel) {
    const int64_t width = rows - first < kPanel ? rows - first : kPanel;
    for (int64_t j = 0; j < width; ++j) {
      const float* row = x + (first + j) * stride;
      for (int d = 0; d < head_dim; ++d) to[d * kPanel + j] = row[d];
    }
    for (int64_t j = width; j < kPanel; ++j) {
      for (int d = 0; d < head_dim; ++d) to[d * kPanel + j] = 0.0f;
    }
  }
}

// Panels of the matrix itself: panel p holds columns p*kPanel... of x, (capacity, kPanel).
void pack(const float* x, ptrdiff_t stride, int64_t rows, int head_dim, int64_t capacity, float* to) {
  for (int64_t j = 0; j < rows; ++j) {
    const float* row = x + j * stride;
    for (int d = 0; d < head_dim; d += kPanel) {
      float* at = to + (d * capacity + j * kPanel);
      store(at, load(row + d));
      store(at + kLanes, load(row + d + kLanes));
    }
  }
}

// Keys [low, high) that some row of the block [first, last) may see, and those of one row.
struct Range {
  int64_t low, high;
};
Range visible(const GqaProblem& p, int64_t length, int64_t first, int64_t last) {
  Range keys{0, p.causal ? last : length};
  if (p.window > 0) {
    if (first - p.window + 1 > 0) keys.low = first - p.window + 1;
    if (!p.causal && last - 1 + p.window < length) keys.high = last - 1 + p.window;
  }
  return keys;
}

float* aligned(float* at) {
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(at) + 63) & ~uintptr_t{63});
}

// Row length of a score block: a multiple of the panel, and off the powers of two, whose rows would share cache sets.
int64_t score_stride(int64_t length) {
  return panels(length) * kPanel + kPanel;
}

size_t scratch_floats(int64_t length, int head_dim, bool backward) {
  const size_t panel_set = static_cast<size_t>(panels(length) * kPanel * head_dim) + 16;
  const size_t scores = static_cast<size_t>(kBlock * score_stride(length)) + 16;
  const size_t block = static_cast<size_t>(kBlock * head_dim) + 16;
  return backward ? 3 * panel_set + 2 * scores + 4 * block + 64 : 2 * panel_set + scores + block + 64;
}

// Dense copy of rows: their stride in a packed batch is a power of two, and so many rows would share cache sets.
void copy_rows(const float* x, ptrdiff_t stride, int64_t rows, int head_dim, float* to) {
  for (int64_t row = 0; row < rows; ++row) std::memcpy(to + row * head_dim, x + row * stride, sizeof(float) * head_dim);
}

void forward(const GqaProblem& p, int64_t document, int kv_head, float* scratch) {
  const int64_t start = p.bounds[document], length = p.bounds[document + 1] - start;
  const int dim = p.head_dim, group = p.query_heads / p.kv_heads;
  const int64_t capacity = panels(length) * kPanel, stride = score_stride(length);
  float* keys = aligned(scratch);
  float* values = aligned(keys + capacity * dim);
  float* scores = aligned(values + capacity * dim);
  float* q = aligned(scores + kBlock * stride);
  pack_transposed(p.k.at(start, kv_head), p.k.token_stride, length, dim, keys);
  pack(p.v.at(start, kv_head), p.v.token_stride, length, dim, capacity, values);
  const float factor = p.scale * kLog2E;
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    float* lse = p.lse + head * int64_t{p.bounds[p.documents]} + start;
    for (int64_t first = 0; first < length; first += kBlock) {
      const int64_t last = first + kBlock < length ? first + kBlock : length;
      const Range seen = visible(p, length, first, last);
      const int64_t from = seen.low / kPanel, to = panels(seen.high), low = from * kPanel;
      const int64_t width = (to - from) * kPanel;
      copy_rows(p.q.at(start + first, head), p.q.token_stride, last - first, dim, q);
      product(last - first, width, dim, q, dim, 1, keys + low * dim, dim * kPanel, scores, stride, false);
      float inverse[kBlock];
      for (int64_t row = first; row < last; ++row) {
        float* s = scores + (row - first) * stride;
        const Range own = visible(p, length, row, row + 1);
        for (int64_t j = 0; j < own.low - low; ++j) s[j] = -INFINITY;
        for (int64_t j = own.high - low; j < width; ++j) s[j] = -INFINITY;
        Vec most[2] = {splat(-INFINITY), splat(-INFINITY)};
        for (int64_t j = 0; j < width; j += kPanel) {
          most[0] = max(most[0], load(s + j));
          most[1] = max(most[1], load(s + j + kLanes));
        }
        const float top = largest(max(most[0], most[1]));
        const Vec shift = splat(top), times = splat(factor);
        Vec total[2] = {};
        for (int64_t j = 0; j < width; j += kPanel) {
          const Vec e0 = exp2((load(s + j) - shift) * times);
          const Vec e1 = exp2((load(s + j + kLanes) - shift) * times);
          store(s + j, e0);
          store(s + j + kLanes, e1);
          total[0] += e0;
          total[1] += e1;
        }
        const float normalizer = sum(total[0] + total[1]);
        inverse[row - first] = 1.0f / normalizer;
        lse[row] = top * p.scale + std::log(normalizer);
      }
      float* out = p.out.at(start + first, head);
      // Keys beyond `high` weigh zero; the depth ends at the last one seen.
      product(last - first, dim, seen.high - low, scores, stride, 1, values + low * kPanel, capacity * kPanel, out,
              p.out.token_stride, false);
      for (int64_t row = 0; row < last - first; ++row) {
        float* o = out + row * p.out.token_stride;
        for (int d = 0; d < dim; d += kLanes) store(o + d, load(o + d) * splat(inverse[row]));
      }
    }
  }
}

void backward(const GqaProblem& p, int64_t document, int kv_head, float* scratch) {
  const int64_t start = p.bounds[document], length = p.bounds[document + 1] - start;
  const int dim = p.head_dim, group = p.query_heads / p.kv_heads;
  const int64_t capacity = panels(length) * kPanel, stride = score_stride(length);
  float* keys_t = aligned(scratch);
  float* values_t = aligned(keys_t + capacity * dim);
  float* keys = aligned(values_t + capacity * dim);
  float* weights = aligned(keys + capacity * dim);
  float* slopes = aligned(weights + kBlock * stride);
  float* q_block = aligned(slopes + kBlock * stride);
  float* grad_block = aligned(q_block + kBlock * dim);
  float* q = aligned(grad_block + kBlock * dim);
  float* grad = aligned(q + kBlock * dim);
  pack_transposed(p.k.at(start, kv_head), p.k.token_stride, length, dim, keys_t);
  pack_transposed(p.v.at(start, kv_head), p.v.token_stride, length, dim, values_t);
  pack(p.k.at(start, kv_head), p.k.token_stride, length, dim, capacity, keys);
  for (int64_t j = 0; j < length; ++j) {
    std::memset(p.dk.at(start + j, kv_head), 0, sizeof(float) * dim);
    std::memset(p.dv.at(start + j, kv_head), 0, sizeof(float) * dim);
  }
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    float* lse = p.lse + head * int64_t{p.bounds[p.documents]} + start;
    for (int64_t first = 0; first < length; first += kBlock) {
      const int64_t last = first + kBlock < length ? first + kBlock : length, rows = last - first;
      const Range seen = visible(p, length, first, last);
      const int64_t from = seen.low / kPanel, to = panels(seen.high), low = from * kPanel;
      const int64_t width = (to - from) * kPanel, depth = seen.high - low;
      copy_rows(p.q.at(start + first, head), p.q.token_stride, rows, dim, q);
      copy_rows(p.grad.at(start + first, head), p.grad.token_stride, rows, dim, grad);
      product(rows, width, dim, q, dim, 1, keys_t + low * dim, dim * kPanel, weights, stride, false);
      product(rows, width, dim, grad, dim, 1, values_t + low * dim, dim * kPanel, slopes, stride, false);
      for (int64_t row = first; row < last; ++row) {
        float* w = weights + (row - first) * stride;
        float* s = slopes + (row - first) * stride;
        const Vec scale = splat(p.scale), shift = splat(lse[row]);
        const Range own = visible(p, length, row, row + 1);
        for (int64_t j = 0; j < own.low - low; ++j) w[j] = -INFINITY, s[j] = 0.0f;
        for (int64_t j = own.high - low; j < width; ++j) w[j] = -INFINITY, s[j] = 0.0f;
        Vec total[2] = {};
        for (int64_t j = 0; j < width; j += kPanel) {
          const Vec e0 = exp2((load(w + j) * scale - shift) * splat(kLog2E));
          const Vec e1 = exp2((load(w + j + kLanes) * scale - shift) * splat(kLog2E));
          store(w + j, e0);
          store(w + j + kLanes, e1);
          total[0] += e0;
          total[1] += e1;
        }
        // lse is rounded, and for large scores that shows: the weights are made to sum to 1 again. rowsum(P * dP)
        // equals dO.O; with the whole row at hand it is the more exact of the two.
        const Vec norm = splat(1.0f / sum(total[0] + total[1]));
        Vec dot[2] = {};
        for (int64_t j = 0; j < width; j += kPanel) {
          const Vec w0 = load(w + j) * norm, w1 = load(w + j + kLanes) * norm;
          store(w + j, w0);
          store(w + j + kLanes, w1);
          dot[0] += w0 * load(s + j);
          dot[1] += w1 * load(s + j + kLanes);
        }
        const Vec delta = splat(sum(dot[0] + dot[1]));
        for (int64_t j = 0; j < width; j += kLanes) store(s + j, load(w + j) * (load(s + j) - delta) * scale);
      }
      product(rows, dim, depth, slopes, stride, 1, keys + low * kPanel, capacity * kPanel, p.dq.at(start + first, head),
              p.dq.token_stride, false);
      pack(q, dim, rows, dim, kBlock, q_block);
      pack(grad, dim, rows, dim, kBlock, grad_block);
      product(depth, dim, rows, weights, 1, stride, grad_block, kBlock * kPanel, p.dv.at(start + low, kv_head),
              p.dv.token_stride, true);
      product(depth, dim, rows, slopes, 1, stride, q_block, kBlock * kPanel, p.dk.at(start + low, kv_head),
              p.dk.token_stride, true);
    }
  }
}

}  // namespace
}  // namespace mify
