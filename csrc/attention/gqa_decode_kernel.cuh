// Decode attention for one (sequence, key/value head, split of the keys) a block. Written against device_ops.cuh alone.
//
// Memory is the limit: every cached byte is read once, for all query heads of the group together. The products are
// turned so that keys (then head dimensions) are the 16 rows of the tensor-core tile and the group's heads its 8
// columns:
//
//     S^T (16 keys, 8 heads) = K (16, D) Q^T (D, 8)        O^T (D, 8 heads) += V^T (D, 16 keys) P^T (16, 8)
//
// which wastes half as much as heads in the rows would: groups up to 8 take one column tile, up to 16 two.
//
// Four warps share a block and nothing else until the end: each takes every fourth run of 16 keys through a ring of its
// own in shared memory (cp.async), with its own running maximum and sum, so the main loop has no block barrier. Then
// the warps are combined in shared memory, and the blocks of a split sequence in global memory by the block that
// arrives last.
//
// A product does not care about the order in which it sums. So a thread reads 16 contiguous bytes of a key (its piece
// of 32 head dimensions, 64 in FP8) and takes them as its fragments of two (four) steps, q being read in the same
// order; and of a value it takes D/8 contiguous dimensions, one a row of each tile. Chunks of 16 bytes are
// exclusive-ored by the row's number so that the eight threads of a 128-byte phase meet eight different bank groups
// (tests count the conflicts).
#pragma once

#include "device_ops.cuh"
#include "gqa_decode.hpp"

namespace mify {

template <int head_dim, KvType type, int column_tiles>
struct GqaDecodeConfig {
  static constexpr int D = head_dim;
  static constexpr bool fp8 = type == KvType::fp8_e4m3;
  static constexpr int NQ = column_tiles;
  static constexpr int WARPS = 4;
  static constexpr int THREADS = WARPS * 32;
  static constexpr int KEYS = 16;                  // a warp's step
  static constexpr int SPLIT_UNIT = WARPS * KEYS;  // a split is a multiple of this
  static constexpr int ROW = D * (fp8 ? 1 : 2);    // bytes of a key or value
  static constexpr int CHUNKS = ROW / 16;
  static constexpr int STAGES = ROW == 256 ? 3 : ROW == 128 ? 6 : 8;
  static constexpr int STAGE_BYTES = 2 * KEYS * ROW;
  static constexpr int RING_BYTES = STAGES * STAGE_BYTES;
  static constexpr int SHARED_BYTES = WARPS * RING_BYTES;
  static constexpr int TILES = D / 16;     // row tiles of O^T
  static constexpr int OUT_PITCH = D + 4;  // floats; the padding spreads the four column pairs over the banks
  static constexpr int HEADS = 8 * NQ;
  static constexpr int MAX_SPLITS = 128;
  static_assert(D == 64 || D == 128);
  // What the ring's memory holds afterwards: each warp's O, maxima and sums; then the maxima and sums of all splits.
  static_assert(WARPS * HEADS * (OUT_PITCH + 2) * 4 <= SHARED_BYTES);
  static_assert((MAX_SPLITS * HEADS * 2 + 1) * 4 <= SHARED_BYTES);
};

// Where chunk `chunk` of key row `row` (0..15) lies in its stage, in bytes.
template <class C>
MIFY_DEVICE int k_offset(int row, int chunk) {
  const int swizzle = C::ROW >= 128 ? (row & 1) << 2 : 0;
  return row * C::ROW + ((chunk ^ swizzle) << 4);
}

// Value rows 2t and 2t+1 are read by the same thread one after the other, rows 0, 2, 4, 6 by a phase at once: those are
// laid side by side.
template <class C>
MIFY_DEVICE int v_offset(int row, int chunk) {
  const int place = (row & 8) | ((row >> 1) & 3) | ((row & 1) << 2);
  const int swizzle = C::ROW == 256 ? (place & 1) | ((place & 2) << 1) : C::ROW == 128 ? (place & 3) << 1 : place & 2;
  return place * C::ROW + ((chunk ^ swizzle) << 4);
}

// The keys that one block takes: [begin, end) of `active` non-empty splits.
struct SplitRange {
  int begin, end, active;
};
MIFY_DEVICE SplitRange split_range(int length, int num_splits, int split, int unit) {
  const int units = (length + unit - 1) / unit;
  const int units_a_split = (units + num_splits - 1) / num_splits;
  const int keys = units_a_split * unit;
  const int begin = split * keys;
  SplitRange range;
  range.begin = begin < length ? begin : length;
  range.end = length - begin > keys ? begin + keys : length;
  range.active = keys == 0 ? 0 : (units + units_a_split - 1) / units_a_split;
  return range;
}

template <class C>
struct GqaDecodeBlock {
  const GqaDecodeParams& p;
  char* const shared;
  const int thread, lane, warp, g, t;
  const int batch, head, split;

  float sum[C::NQ][2];      // of this thread's keys
  float maximum[C::NQ][2];  // of the warp's keys, for columns 2t and 2t+1
  float o[C::NQ][C::TILES][4];
  uint32_t q[C::NQ][C::D / 8];
  int early_page;  // page `lane` of the sequence, loaded before its length is known
  bool bad = false;

  MIFY_DEVICE GqaDecodeBlock(const GqaDecodeParams& params, char* shared_memory, int block, int thread_index)
      : p(params),
        shared(shared_memory),
        thread(thread_index),
        lane(thread_index & 31),
        warp(thread_index >> 5),
        g((thread_index & 31) >> 2),
        t(thread_index & 3),
        batch(block / params.num_splits / params.kv_heads),
        head(block / params.num_splits % params.kv_heads),
        split(block % params.num_splits) {}

  // q in the order in which k is read, two 16-bit elements a register; zeros for heads beyond the group.
  MIFY_DEVICE void load_q() {
    const uint16_t* base = static_cast<const uint16_t*>(p.q) + batch * p.q_batch_stride;
#pragma unroll
    for (int tile = 0; tile < C::NQ; ++tile) {
      const int in_group = tile * 8 + g;
      const bool real = in_group < p.group;
      const uint16_t* row = base + static_cast<int64_t>(head * p.group + (real ? in_group : 0)) * p.q_head_stride;
#pragma unroll
      for (int piece = 0; piece < C::D / 32; ++piece) {
        // FP8 keys: 16 dimensions a thread of every 64, so two pieces of 8 follow each other.
        const int at = C::fp8 ? piece / 2 * 64 + t * 16 + piece % 2 * 8 : piece * 32 + t * 8;
        uint4 loaded = *reinterpret_cast<const uint4*>(row + at);
        uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          uint32_t value = real ? words[word] : 0u;
          if constexpr (C::fp8) value = bf16_to_f16(value);
          q[tile][piece * 4 + word] = value;
        }
      }
    }
  }

  MIFY_DEVICE static uint32_t bf16_to_f16(uint32_t pair) {
    return device::pack_f16(device::as_float(pair << 16), device::as_float(pair & 0xffff0000u));
  }

  // The page of the 16 keys at `key`, and whether it may be read. All threads of the warp ask for the same key.
  MIFY_DEVICE int page_of(int key, bool* valid) {
    if (p.page_table == nullptr) {
      *valid = true;
      return batch;
    }
    const int index = key >> p.page_shift;
    const int known = device::shuffle(early_page, index & 31);
    const int page = index < 32 ? known : p.page_table[batch * p.table_stride + index];
    *valid = static_cast<uint32_t>(page) < static_cast<uint32_t>(p.num_pages);
    return page;
  }

  // Starts the copy of the warp's keys [key, key + 16) into its ring, and closes the group even where there are none.
  MIFY_DEVICE void start_copy(int key, int end, char* stage) {
    if (key < end) {
      bool valid;
      const int page = page_of(key, &valid);
      bad |= !valid;
      const int slot = p.page_table == nullptr ? key : key & ((1 << p.page_shift) - 1);
      constexpr int element = C::fp8 ? 1 : 2;
      const int64_t k_at = page * p.k_page_stride + slot * p.k_slot_stride + head * p.k_head_stride;
      const int64_t v_at = page * p.v_page_stride + slot * p.v_slot_stride + head * p.v_head_stride;
      const char* k = static_cast<const char*>(p.k) + (valid ? k_at * element : 0);
      const char* v = static_cast<const char*>(p.v) + (valid ? v_at * element : 0);
      constexpr int rows_a_pass = 32 / C::CHUNKS;
#pragma unroll
      for (int pass = 0; pass < C::KEYS / rows_a_pass; ++pass) {
        const int row = pass * rows_a_pass + lane / C::CHUNKS, chunk = lane % C::CHUNKS;
        const bool inside = valid && key + row < end;
        // Where nothing is copied the address must still be one that exists.
        const int64_t k_row = inside ? row * p.k_slot_stride * element + chunk * 16 : 0;
        const int64_t v_row = inside ? row * p.v_slot_stride * element + chunk * 16 : 0;
        device::copy_async(stage + k_offset<C>(row, chunk), k + k_row, inside);
        device::copy_async(stage + C::KEYS * C::ROW + v_offset<C>(row, chunk), v + v_row, inside);
      }
    }
    device::copy_commit();
  }

  // scores[tile]: S^T of the 16 keys in `stage`.
  MIFY_DEVICE void multiply_keys(const char* stage, float (&scores)[C::NQ][4]) {
    float other[C::NQ][4];  // two chains of sums, so that one does not wait for itself
#pragma unroll
    for (int tile = 0; tile < C::NQ; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[tile][i] = other[tile][i] = 0.0f;
#pragma unroll
    for (int piece = 0; piece < C::ROW / 64; ++piece) {
      const uint4 low = *reinterpret_cast<const uint4*>(stage + k_offset<C>(g, piece * 4 + t));
      const uint4 high = *reinterpret_cast<const uint4*>(stage + k_offset<C>(g + 8, piece * 4 + t));
      const uint32_t a[4] = {low.x, low.y, low.z, low.w}, b[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
      for (int tile = 0; tile < C::NQ; ++tile) {
        if constexpr (C::fp8) {
#pragma unroll
          for (int word = 0; word < 4; ++word) {
            const uint32_t* column = &q[tile][piece * 8 + word * 2];
            device::mma_16x8x16<true>(word % 2 ? other[tile] : scores[tile], device::e4m3_to_f16(a[word] & 0xffffu),
                                      device::e4m3_to_f16(b[word] & 0xffffu), device::e4m3_to_f16(a[word] >> 16),
                                      device::e4m3_to_f16(b[word] >> 16), column[0], column[1]);
          }
        } else {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint32_t* column = &q[tile][piece * 4 + half * 2];
            device::mma_16x8x16<false>(half ? other[tile] : scores[tile], a[half * 2], b[half * 2], a[half * 2 + 1],
                                       b[half * 2 + 1], column[0], column[1]);
          }
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < C::NQ; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[tile][i] += other[tile][i];
  }

  // Turns scores into weights (P^T fragments), rescaling what was summed under a smaller maximum. `left` keys are real.
  MIFY_DEVICE void soften(const float (&scores)[C::NQ][4], int left, float scale_log2, uint32_t (&weights)[C::NQ][2]) {
    const float infinity = device::as_float(0x7f800000u);
#pragma unroll
    for (int tile = 0; tile < C::NQ; ++tile) {
      float s[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) s[i] = g + (i / 2) * 8 < left ? scores[tile][i] * scale_log2 : -infinity;
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        float top = s[column] > s[column + 2] ? s[column] : s[column + 2];
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
          const float far = device::shuffle_xor(top, mask);
          top = top > far ? top : far;
        }
        const float before = maximum[tile][column];
        const float now = top > before ? top : before;
        const float base = now == -infinity ? 0.0f : now;
        const float shrink = device::exp2_fast(before - base);
        s[column] = device::exp2_fast(s[column] - base);
        s[column + 2] = device::exp2_fast(s[column + 2] - base);
        sum[tile][column] = sum[tile][column] * shrink + (s[column] + s[column + 2]);
        maximum[tile][column] = now;
#pragma unroll
        for (int row = 0; row < C::TILES; ++row) {
          o[tile][row][column] *= shrink;
          o[tile][row][column + 2] *= shrink;
        }
      }
      const uint32_t low = C::fp8 ? device::pack_f16(s[0], s[1]) : device::pack_bf16(s[0], s[1]);
      const uint32_t high = C::fp8 ? device::pack_f16(s[2], s[3]) : device::pack_bf16(s[2], s[3]);
      weights[tile][0] = device::transpose_8x8(low);
      weights[tile][1] = device::transpose_8x8(high);
    }
  }

  // o += V^T P^T. Row tile j: its row g is dimension g * D/8 + 2j, its row g + 8 the one after.
  MIFY_DEVICE void multiply_values(const char* stage, const uint32_t (&weights)[C::NQ][2]) {
    const char* values = stage + C::KEYS * C::ROW;
    constexpr int mine = C::ROW / 8;                 // bytes of a value that a thread takes: 32, 16 or 8
    constexpr int words = mine < 16 ? mine / 4 : 4;  // registers a read
#pragma unroll
    for (int part = 0; part < (mine + 15) / 16; ++part) {
      uint32_t x[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 2 * t + (i & 1) + (i & 2) * 4;
        if constexpr (words == 4) {
          const uint4 loaded = *reinterpret_cast<const uint4*>(values + v_offset<C>(row, g * (mine / 16) + part));
          x[i][0] = loaded.x, x[i][1] = loaded.y, x[i][2] = loaded.z, x[i][3] = loaded.w;
        } else {
          const uint2 loaded = *reinterpret_cast<const uint2*>(values + v_offset<C>(row, g / 2) + g % 2 * 8);
          x[i][0] = loaded.x, x[i][1] = loaded.y;
        }
      }
#pragma unroll
      for (int word = 0; word < words; ++word) {
        if constexpr (C::fp8) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            // Bytes (key 2t, key 2t+1) of two dimensions side by side.
            const uint32_t selector = half ? 0x7362u : 0x5140u;
            const uint32_t near = device::byte_permute(x[0][word], x[1][word], selector);
            const uint32_t far = device::byte_permute(x[2][word], x[3][word], selector);
            const uint32_t a0 = device::e4m3_to_f16(near & 0xffffu), a1 = device::e4m3_to_f16(near >> 16);
            const uint32_t a2 = device::e4m3_to_f16(far & 0xffffu), a3 = device::e4m3_to_f16(far >> 16);
#pragma unroll
            for (int tile = 0; tile < C::NQ; ++tile)
              device::mma_16x8x16<true>(o[tile][word * 2 + half], a0, a1, a2, a3, weights[tile][0], weights[tile][1]);
          }
        } else {
          const uint32_t a0 = device::byte_permute(x[0][word], x[1][word], 0x5410u);
          const uint32_t a1 = device::byte_permute(x[0][word], x[1][word], 0x7632u);
          const uint32_t a2 = device::byte_permute(x[2][word], x[3][word], 0x5410u);
          const uint32_t a3 = device::byte_permute(x[2][word], x[3][word], 0x7632u);
#pragma unroll
          for (int tile = 0; tile < C::NQ; ++tile)
            device::mma_16x8x16<false>(o[tile][part * 4 + word], a0, a1, a2, a3, weights[tile][0], weights[tile][1]);
        }
      }
    }
  }

  MIFY_DEVICE void clear() {
#pragma unroll
    for (int tile = 0; tile < C::NQ; ++tile)
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        sum[tile][column] = 0.0f;
        maximum[tile][column] = device::as_float(0xff800000u);
#pragma unroll
        for (int row = 0; row < C::TILES; ++row) o[tile][row][column] = o[tile][row][column + 2] = 0.0f;
      }
  }

  // The warps' results into shared memory: O by head and dimension, then maxima, then sums.
  MIFY_DEVICE void store_warp() {
    float* outs = reinterpret_cast<float*>(shared) + warp * C::HEADS * C::OUT_PITCH;
    float* maxima = reinterpret_cast<float*>(shared) + C::WARPS * C::HEADS * C::OUT_PITCH + warp * C::HEADS;
    float* sums = maxima + C::WARPS * C::HEADS;
    const bool broken = device::warp_any(bad);
#pragma unroll
    for (int tile = 0; tile < C::NQ; ++tile)
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const int in_group = tile * 8 + 2 * t + column;
        float total = sum[tile][column];
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) total += device::shuffle_xor(total, mask);
        if (g == 0) {
          maxima[in_group] = maximum[tile][column];
          sums[in_group] = broken ? device::quiet_nan() : total;
        }
        float* row = outs + in_group * C::OUT_PITCH + g * (C::D / 8);
#pragma unroll
        for (int pair = 0; pair < C::TILES / 2; ++pair) {
          float4 four;
          four.x = o[tile][pair * 2][column], four.y = o[tile][pair * 2][column + 2];
          four.z = o[tile][pair * 2 + 1][column], four.w = o[tile][pair * 2 + 1][column + 2];
          *reinterpret_cast<float4*>(row + pair * 4) = four;
        }
      }
  }

  // Four consecutive dimensions of a head from all warps, unnormalized, with the maximum and sum they refer to.
  MIFY_DEVICE float4 combine_warps(int in_group, int dim, float* top, float* total) const {
    const float* outs = reinterpret_cast<const float*>(shared);
    const float* maxima = outs + C::WARPS * C::HEADS * C::OUT_PITCH;
    const float* sums = maxima + C::WARPS * C::HEADS;
    float highest = maxima[in_group];
#pragma unroll
    for (int w = 1; w < C::WARPS; ++w) {
      const float m = maxima[w * C::HEADS + in_group];
      highest = m > highest ? m : highest;
    }
    const float base = highest == device::as_float(0xff800000u) ? 0.0f : highest;
    float4 all;
    all.x = all.y = all.z = all.w = 0.0f;
    float l = 0.0f;
#pragma unroll
    for (int w = 0; w < C::WARPS; ++w) {
      const float weight = device::exp2_fast(maxima[w * C::HEADS + in_group] - base);
      const float4 one = *reinterpret_cast<const float4*>(outs + (w * C::HEADS + in_group) * C::OUT_PITCH + dim);
      all.x += weight * one.x, all.y += weight * one.y, all.z += weight * one.z, all.w += weight * one.w;
      l += weight * sums[w * C::HEADS + in_group];
    }
    *top = highest;
    *total = l;
    return all;
  }

  MIFY_DEVICE void write_out(int in_group, int dim, float4 value, float factor) const {
    uint2 packed;
    packed.x = device::pack_bf16(value.x * factor, value.y * factor);
    packed.y = device::pack_bf16(value.z * factor, value.w * factor);
    uint16_t* row = static_cast<uint16_t*>(p.out) + batch * p.out_batch_stride +
                    static_cast<int64_t>(head * p.group + in_group) * p.out_head_stride;
    *reinterpret_cast<uint2*>(row + dim) = packed;
  }

  MIFY_DEVICE void fill_out(float value) const {
    float4 four;
    four.x = four.y = four.z = four.w = value;
    for (int at = thread; at < p.group * (C::D / 4); at += C::THREADS)
      write_out(at / (C::D / 4), at % (C::D / 4) * 4, four, 1.0f);
  }

  // Partial results: D floats for each (sequence, head, split, head of the group), then a maximum and a sum for each.
  MIFY_DEVICE int64_t first_partial() const {
    return (static_cast<int64_t>(batch) * p.kv_heads + head) * p.num_splits * p.group;
  }
  MIFY_DEVICE float* partial_rows() const { return p.partials + first_partial() * C::D; }
  MIFY_DEVICE float* partial_statistics() const {
    const int64_t rows = static_cast<int64_t>(p.batch) * p.kv_heads * p.num_splits * p.group;
    return p.partials + rows * C::D + first_partial() * 2;
  }

  // The block that arrives last sums the splits. The others' writes are ordered before their arrival by the fence.
  MIFY_DEVICE void combine_splits(int active, float value_scale) {
    device::device_fence();
    device::block_sync();
    uint32_t* flag = reinterpret_cast<uint32_t*>(shared);
    uint32_t* arrivals = p.arrivals + static_cast<int64_t>(batch) * p.kv_heads + head;
    if (thread == 0) *flag = device::atomic_add(arrivals, 1u);
    device::block_sync();
    if (*flag != static_cast<uint32_t>(active - 1)) return;
    device::device_fence();
    if (thread == 0) *arrivals = 0;  // ready for the next launch, in a replayed graph too

    float* statistics = reinterpret_cast<float*>(shared) + 4;
    const float2* from = reinterpret_cast<const float2*>(partial_statistics());
    for (int at = thread; at < active * p.group; at += C::THREADS) {
      const float2 one = device::load_coherent(from + at);
      statistics[at * 2] = one.x, statistics[at * 2 + 1] = one.y;
    }
    device::block_sync();
    const float* rows = partial_rows();
    for (int at = thread; at < p.group * (C::D / 4); at += C::THREADS) {
      const int in_group = at / (C::D / 4), dim = at % (C::D / 4) * 4;
      float highest = device::as_float(0xff800000u);
      for (int s = 0; s < active; ++s) {
        const float m = statistics[(s * p.group + in_group) * 2];
        highest = m > highest ? m : highest;
      }
      const float base = highest == device::as_float(0xff800000u) ? 0.0f : highest;
      float4 all;
      all.x = all.y = all.z = all.w = 0.0f;
      float l = 0.0f;
#pragma unroll 8
      for (int s = 0; s < active; ++s) {
        const int64_t row = static_cast<int64_t>(s) * p.group + in_group;
        const float4 one = device::load_coherent(reinterpret_cast<const float4*>(rows + row * C::D + dim));
        const float weight = device::exp2_fast(statistics[row * 2] - base);
        all.x += weight * one.x, all.y += weight * one.y, all.z += weight * one.z, all.w += weight * one.w;
        l += weight * statistics[row * 2 + 1];
      }
      write_out(in_group, dim, all, value_scale / l);
    }
  }

  MIFY_DEVICE void run() {
    // What depends on nothing is asked for first: these loads and the length are in flight together.
    const int length = p.lengths[batch];
    early_page = p.page_table != nullptr && lane < p.table_columns ? p.page_table[batch * p.table_stride + lane] : 0;
    const float key_scale = p.k_scale != nullptr ? p.k_scale[head] : 1.0f;
    const float value_scale = p.v_scale != nullptr ? p.v_scale[head] : 1.0f;
    load_q();
    if (length <= 0 || length > p.capacity) {
      // No keys is zero; a length that cannot be is said by NaN, not by a crash or a silent number.
      if (split == 0) fill_out(length == 0 ? 0.0f : device::quiet_nan());
      return;
    }
    const SplitRange range = split_range(length, p.num_splits, split, C::SPLIT_UNIT);
    if (range.begin >= range.end) return;

    clear();
    char* ring = shared + warp * C::RING_BYTES;
    const int first = range.begin + warp * C::KEYS;
    const float scale_log2 = p.scale_log2 * key_scale;
#pragma unroll
    for (int stage = 0; stage < C::STAGES - 1; ++stage)
      start_copy(first + stage * C::SPLIT_UNIT, range.end, ring + stage * C::STAGE_BYTES);
    int reading = 0, writing = C::STAGES - 1;
    for (int key = first; key < range.end; key += C::SPLIT_UNIT) {
      device::copy_wait<C::STAGES - 2>();
      // Makes the other lanes' copies visible, and says that all lanes have read the stage that is written next.
      device::warp_sync();
      start_copy(key + (C::STAGES - 1) * C::SPLIT_UNIT, range.end, ring + writing * C::STAGE_BYTES);
      const char* stage = ring + reading * C::STAGE_BYTES;
      float scores[C::NQ][4];
      uint32_t weights[C::NQ][2];
      multiply_keys(stage, scores);
      soften(scores, range.end - key, scale_log2, weights);
      multiply_values(stage, weights);
      reading = reading + 1 == C::STAGES ? 0 : reading + 1;
      writing = writing + 1 == C::STAGES ? 0 : writing + 1;
    }
    device::copy_wait<0>();
    device::block_sync();  // all warps are done with their rings, whose memory is used again
    store_warp();
    device::block_sync();

    float* rows = partial_rows() + static_cast<int64_t>(split) * p.group * C::D;
    float2* statistics = reinterpret_cast<float2*>(partial_statistics()) + split * p.group;
    for (int at = thread; at < p.group * (C::D / 4); at += C::THREADS) {
      const int in_group = at / (C::D / 4), dim = at % (C::D / 4) * 4;
      float top, total;
      const float4 value = combine_warps(in_group, dim, &top, &total);
      if (range.active == 1) {
        write_out(in_group, dim, value, value_scale / total);
        continue;
      }
      *reinterpret_cast<float4*>(rows + in_group * C::D + dim) = value;
      if (dim == 0) {
        float2 pair;
        pair.x = top, pair.y = total;
        statistics[in_group] = pair;
      }
    }
    if (range.active > 1) combine_splits(range.active, value_scale);
  }
};

}  // namespace mify
