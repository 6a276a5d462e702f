// Decode attention: one query token a sequence against a paged (or contiguous) cache of keys and values.
#pragma once

#include <cstdint>

namespace mify {

enum class KvType : int { bf16 = 0, fp8_e4m3 = 1 };

// Everything by device address; strides in elements; D is contiguous everywhere. Query head h reads key/value head
// h / group. A cache without a page table is one page a sequence: page_table is null, page_shift 31, page stride the
// sequence's.
struct GqaDecodeParams {
  const void* q = nullptr;              // (batch, kv_heads * group, D) bf16
  void* out = nullptr;                  // (batch, kv_heads * group, D) bf16
  const void* k = nullptr;              // (pages, page_size, kv_heads, D) by its strides
  const void* v = nullptr;              // likewise
  const int32_t* page_table = nullptr;  // (batch, table_columns), or null
  const int32_t* lengths = nullptr;     // (batch,) keys of each sequence
  const float* k_scale = nullptr;       // (kv_heads,) multiplies FP8 keys, or null for 1
  const float* v_scale = nullptr;       // (kv_heads,) multiplies FP8 values, or null for 1
  float* partials = nullptr;            // batch * kv_heads * num_splits * group * (D + 2) floats; unused with one split
  uint32_t* arrivals = nullptr;         // (batch, kv_heads), zero before and after
  int64_t q_batch_stride = 0, q_head_stride = 0;
  int64_t out_batch_stride = 0, out_head_stride = 0;
  int64_t k_page_stride = 0, k_slot_stride = 0, k_head_stride = 0;
  int64_t v_page_stride = 0, v_slot_stride = 0, v_head_stride = 0;
  int64_t table_stride = 0;
  int32_t num_pages = 0;      // page ids at or above this are refused
  int32_t table_columns = 0;  // pages a sequence at most
  int32_t page_shift = 31;    // log2 of the page size, at least 4
  int32_t capacity = 0;       // keys that a sequence can have
  int32_t batch = 0, kv_heads = 0, group = 0, num_splits = 1;
  float scale_log2 = 0.0f;  // softmax scale * log2(e)
};

// Returns a cudaError_t as int: 0 for success, cudaErrorInvalidValue (1) for a head dimension or group that no kernel
// was built for. The caller has checked everything else.
int launch_gqa_decode(const GqaDecodeParams& params, int head_dim, KvType kv_type, void* stream);

// Registers, spilled bytes and dynamic shared memory of one variant on the current device; returns a cudaError_t.
struct KernelInfo {
  int registers = 0;
  int local_bytes = 0;
  int shared_bytes = 0;
  int threads = 0;
};
int gqa_decode_info(int head_dim, KvType kv_type, int group, KernelInfo* info);

// Dynamic shared memory of one variant in bytes, without asking a device; 0 where there is none.
int gqa_decode_shared_bytes(int head_dim, KvType kv_type, int group);

}  // namespace mify
