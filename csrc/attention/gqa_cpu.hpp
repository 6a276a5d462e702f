// Grouped-query attention over packed documents on a CPU, fp32, forward and backward.
//
// A job is one document and one key/value head: its keys and values are copied once into panels, then every query head
// of the group goes through them in blocks of rows. Scores of a block stay in the second-level cache. All five products
// (S = QK^T, O = PV, dP = dO V^T, dQ = dS K, and dV = P^T dO, dK = dS^T Q) run through one register tile. A job owns
// all that it writes, so results do not depend on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mify {

// A (tokens, heads, head_dim) tensor of floats; the last dimension is dense, strides are in elements.
struct Heads {
  float* data;
  ptrdiff_t token_stride;
  ptrdiff_t head_stride;
  float* at(int64_t token, int64_t head) const { return data + token * token_stride + head * head_stride; }
};

struct GqaProblem {
  Heads q, k, v;           // in
  Heads out;               // forward: out; backward: in
  float* lse;              // (query_heads, tokens), natural logarithm; forward: out; backward: in
  Heads grad, dq, dk, dv;  // backward: in, then out
  const int32_t* bounds;   // (documents + 1)
  int64_t documents;
  int query_heads, kv_heads, head_dim;
  bool causal;
  int64_t window;  // 0 is unlimited
  float scale;
};

// head_dim must be a multiple of 16, at most 256.
void gqa_forward(const GqaProblem& problem, unsigned threads);
void gqa_backward(const GqaProblem& problem, unsigned threads);

// The code of one instruction set. `scratch` has the size that `scratch_floats` says for the document's length.
struct GqaKernels {
  size_t (*scratch_floats)(int64_t length, int head_dim, bool backward);
  void (*forward)(const GqaProblem& problem, int64_t document, int kv_head, float* scratch);
  void (*backward)(const GqaProblem& problem, int64_t document, int kv_head, float* scratch);
};

}  // namespace mify
