// The row-wise operations of a decoder on a CPU, fp32, each in one pass over memory: RMSNorm with the residual sum,
// rotary positions, SwiGLU, and the softmax of cross-entropy with its gradient. kernels/{norm,rope,mlp,loss} hold the
// mathematics; here is only how it is computed. No result depends on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mify {

// A matrix of floats with dense rows.
struct Rows {
  float* data;
  ptrdiff_t stride;
  float* at(int64_t row) const { return data + row * stride; }
};

struct NormForward {
  Rows x;
  Rows residual;  // added to x before the norm; data may be null
  Rows total;     // x + residual, written when residual is given
  const float* weight;
  Rows y;
  float* inverse;  // (rows) 1 / rms
  float eps;
  int64_t size;
};

struct NormBackward {
  Rows grad;        // of y
  Rows grad_total;  // of x + residual, added to dx; data may be null
  Rows x;           // what was normed
  const float* weight;
  const float* inverse;
  Rows dx;
  int64_t size;
};

struct Glu {
  Rows gate, up;
  Rows y;           // forward: out; backward: the gradient of y
  Rows dgate, dup;  // backward: out
  int64_t size;
};

struct Rotary {
  const float* x;
  ptrdiff_t x_token, x_head;
  float* y;  // (tokens, heads, 2 * half), dense
  int64_t heads, half;
  const float* cos;  // (tokens, half), dense
  const float* sin;
  bool inverse;  // turn back
};

struct SoftmaxLoss {
  Rows logits;            // in; with `gradient` they become the gradient of the summed loss
  const int64_t* labels;  // (rows), every one a class
  float* loss;            // (rows)
  int64_t classes;
  float z_loss, smoothing;
  bool gradient;
};

constexpr int64_t kNormBlock = 128;  // rows that share one partial sum of the weight's gradient

void norm_forward(const NormForward& op, int64_t rows, unsigned threads);
// dweight (size) is overwritten.
void norm_backward(const NormBackward& op, int64_t rows, float* dweight, unsigned threads);
void glu_forward(const Glu& op, int64_t rows, unsigned threads);
void glu_backward(const Glu& op, int64_t rows, unsigned threads);
void rotary(const Rotary& op, int64_t tokens, unsigned threads);
void softmax_loss(const SoftmaxLoss& op, int64_t rows, unsigned threads);

// The code of one instruction set, for rows [begin, end).
struct RowKernels {
  void (*norm_forward)(const NormForward&, int64_t begin, int64_t end);
  void (*norm_backward)(const NormBackward&, int64_t begin, int64_t end, float* dweight);  // adds to dweight
  void (*glu_forward)(const Glu&, int64_t begin, int64_t end);
  void (*glu_backward)(const Glu&, int64_t begin, int64_t end);
  void (*rotary)(const Rotary&, int64_t begin, int64_t end);
  void (*softmax_loss)(const SoftmaxLoss&, int64_t begin, int64_t end);
};

}  // namespace mify
