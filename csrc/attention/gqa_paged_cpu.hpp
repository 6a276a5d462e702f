// Grouped-query attention of new tokens against cached keys and values in pages, on a CPU, with fp32 sums.
//
// A job is one sequence and one key/value head. Each new token is taken with two query heads of the group at a time:
// its scores over all keys that it sees, their softmax, the weighted sum of the values. What a token gets depends on
// its own query, keys and values alone, to the bit: not on the batch, on the chunk it came in, or on the number of
// threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/gqa_cpu.hpp"

namespace mify {

// (pages, page_size, kv_heads, head_dim) of floats or E4M3; strides in elements, the last dimension is dense.
struct PagedCache {
  const void* data;
  ptrdiff_t page_stride, slot_stride, head_stride;
};

struct PagedProblem {
  Heads q, out;  // (tokens, query_heads, head_dim)
  PagedCache keys, values;
  bool fp8;
  const int32_t* bounds;   // (sequences + 1): new tokens of each; null: one each
  const int32_t* lengths;  // (sequences): keys of each, its new tokens included
  const int32_t* table;    // (sequences, columns) pages; null: sequence b has page b
  ptrdiff_t table_stride;
  int64_t sequences, pages, page_size, columns;
  int query_heads, kv_heads, head_dim;
  const float* key_scale;  // (kv_heads): what stored values are multiplied by; null: 1
  const float* value_scale;
  float scale;
};

// head_dim must be a multiple of 16, at most 256. Throws std::invalid_argument where a length or a page cannot be.
void gqa_paged(const PagedProblem& problem, unsigned threads);

// The code of one instruction set. `scores` has room for two rows of the longest sequence, each padded by 32.
struct PagedKernels {
  void (*run)(const PagedProblem& problem, int64_t sequence, int kv_head, float* scores, int64_t scores_stride);
};

}  // namespace mify
