// The work of rows.hpp, compiled once for every instruction set. It uses no template of the standard library, whose
// copies the linker could share between files compiled for different instruction sets.
#pragma once

#include <cmath>

#include "fused/rows.hpp"
#include "simd.hpp"

namespace mify {
namespace {

// Calls body(j, count) for every vector of a row of `size` floats; count < kLanes only for the last.
template <class Body>
inline void each_vector(int64_t size, Body&& body) {
  int64_t j = 0;
  for (; j + kLanes <= size; j += kLanes) body(j, kLanes);
  if (j < size) body(j, static_cast<int>(size - j));
}
inline Vec load(const float* at, int count, float fill = 0.0f) {
  if (count == kLanes) return load(at);
  Vec v = splat(fill);
  for (int i = 0; i < count; ++i) v[i] = at[i];
  return v;
}
inline void store(float* at, Vec v, int count) {
  if (count == kLanes) return store(at, v);
  for (int i = 0; i < count; ++i) at[i] = v[i];
}

// 1 / (1 + e^-x). Beyond 2^127 the exponent would overflow into the sign; there the result is below 6e-39 anyway.
inline Vec sigmoid(Vec x) {
  Vec power = x * splat(-kLog2E);
  power = power > splat(127.0f) ? splat(127.0f) : power;
  return splat(1.0f) / (splat(1.0f) + exp2(power));
}

void norm_forward(const NormForward& op, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = op.x.at(row);
    float* y = op.y.at(row);
    Vec squares{};
    if (op.residual.data != nullptr) {
      const float* residual = op.residual.at(row);
      float* total = op.total.at(row);
      each_vector(op.size, [&](int64_t j, int n) {
        const Vec v = load(x + j, n) + load(residual + j, n);
        store(total + j, v, n);
        squares += v * v;
      });
      x = total;
    } else {
      each_vector(op.size, [&](int64_t j, int n) {
        const Vec v = load(x + j, n);
        squares += v * v;
      });
    }
    const float inverse = 1.0f / std::sqrt(sum(squares) / static_cast<float>(op.size) + op.eps);
    op.inverse[row] = inverse;
    each_vector(op.size,
                [&](int64_t j, int n) { store(y + j, load(x + j, n) * splat(inverse) * load(op.weight + j, n), n); });
  }
}

void norm_backward(const NormBackward& op, int64_t begin, int64_t end, float* dweight) {
  for (int64_t row = begin; row < end; ++row) {
    const float* grad = op.grad.at(row);
    const float* x = op.x.at(row);
    float* dx = op.dx.at(row);
    const Vec inverse = splat(op.inverse[row]);
    Vec dot{};
    each_vector(op.size, [&](int64_t j, int n) {
      const Vec g = load(grad + j, n), normal = load(x + j, n) * inverse;
      store(dweight + j, load(dweight + j, n) + g * normal, n);
      dot += g * load(op.weight + j, n) * normal;
    });
    const Vec mean = splat(sum(dot) / static_cast<float>(op.size));
    const float* extra = op.grad_total.data == nullptr ? nullptr : op.grad_total.at(row);
    each_vector(op.size, [&](int64_t j, int n) {
      const Vec normal = load(x + j, n) * inverse;
      Vec d = inverse * (load(grad + j, n) * load(op.weight + j, n) - normal * mean);
      if (extra != nullptr) d += load(extra + j, n);
      store(dx + j, d, n);
    });
  }
}

void glu_forward(const Glu& op, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* gate = op.gate.at(row);
    const float* up = op.up.at(row);
    float* y = op.y.at(row);
    each_vector(op.size, [&](int64_t j, int n) {
      const Vec g = load(gate + j, n);
      store(y + j, g * sigmoid(g) * load(up + j, n), n);
    });
  }
}

void glu_backward(const Glu& op, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* gate = op.gate.at(row);
    const float* up = op.up.at(row);
    const float* grad = op.y.at(row);
    float* dgate = op.dgate.at(row);
    float* dup = op.dup.at(row);
    each_vector(op.size, [&](int64_t j, int n) {
      const Vec g = load(gate + j, n), dy = load(grad + j, n);
      const Vec s = sigmoid(g), silu = g * s;
      store(dgate + j, dy * load(up + j, n) * (s + silu * (splat(1.0f) - s)), n);
      store(dup + j, dy * silu, n);
    });
  }
}

void rotary(const Rotary& op, int64_t begin, int64_t end) {
  const Vec sign = splat(op.inverse ? -1.0f : 1.0f);
  for (int64_t token = begin; token < end; ++token) {
    const float* cos = op.cos + token * op.half;
    const float* sin = op.sin + token * op.half;
    for (int64_t head = 0; head < op.heads; ++head) {
      const float* x = op.x + token * op.x_token + head * op.x_head;
      float* y = op.y + (token * op.heads + head) * 2 * op.half;
      each_vector(op.half, [&](int64_t j, int n) {
        const Vec a = load(x + j, n), b = load(x + op.half + j, n);
        const Vec c = load(cos + j, n), s = load(sin + j, n) * sign;
        store(y + j, a * c - b * s, n);
        store(y + op.half + j, b * c + a * s, n);
      });
    }
  }
}

void softmax_loss(const SoftmaxLoss& op, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* x = op.logits.at(row);
    const int64_t label = op.labels[row];
    const float at_label = x[label];
    Vec most = splat(-INFINITY), all{};
    each_vector(op.classes, [&](int64_t j, int n) { most = max(most, load(x + j, n, -INFINITY)); });
    if (op.smoothing > 0) each_vector(op.classes, [&](int64_t j, int n) { all += load(x + j, n); });
    const float top = largest(most);
    Vec total{};
    each_vector(op.classes, [&](int64_t j, int n) {
      const Vec e = exp2((load(x + j, n, -INFINITY) - splat(top)) * splat(kLog2E));
      if (op.gradient) store(x + j, e, n);
      total += e;
    });
    const float normalizer = sum(total), log_sum = std::log(normalizer), lse = top + log_sum;
    float loss = (top - at_label) + log_sum;
    if (op.smoothing > 0) {
      loss = (1.0f - op.smoothing) * loss + op.smoothing * (lse - sum(all) / static_cast<float>(op.classes));
    }
    op.loss[row] = loss + op.z_loss * lse * lse;
    if (!op.gradient) continue;
    const Vec scale = splat((1.0f + 2.0f * op.z_loss * lse) / normalizer);
    const Vec shift = splat(op.smoothing / static_cast<float>(op.classes));
    each_vector(op.classes, [&](int64_t j, int n) { store(x + j, load(x + j, n) * scale - shift, n); });
    x[label] -= 1.0f - op.smoothing;
  }
}

constexpr RowKernels kRowKernels = {norm_forward, norm_backward, glu_forward, glu_backward, rotary, softmax_loss};

}  // namespace
}  // namespace mify
