// RMSNorm to FP8 in two layouts, for 128 rows a cluster of thread blocks. Written against device_ops.cuh alone.
//
// The transpose has a scale for 128 tokens of a feature, so 128 rows must be at hand when it is written, and their norm
// before that: 655 KB at 2,560 features, more than a multiprocessor holds. The thread blocks of a cluster share the
// features instead. Each reads its part of x (and residual) once and keeps the sum in its shared memory as bf16; the
// rows' squares are added up over the cluster through distributed shared memory; then each writes its part in both
// layouts. So every byte moves once: 8 an element with a residual, where a kernel that reads twice moves 8 to 10.
//
// A tile is 128 rows by 128 features. First a half warp takes a row, 8 features a thread, which is how x comes and data
// goes; then a thread takes two features and 32 rows. In between the tile lies in shared memory, where neither way
// meets a bank conflict: a row is 64 words, read 16 bytes a thread along it, or a word a thread across 32 neighbours.
#pragma once

#include "attention/device_ops.cuh"
#include "norm/norm_fp8.hpp"

namespace mify {

inline constexpr int kNormFp8Threads = 256;

class NormFp8Block {
 public:
  MIFY_DEVICE NormFp8Block(const NormFp8Params& params, char* shared, int block, int thread)
      : p_(params),
        thread_(thread),
        lane_(thread & 31),
        warp_(thread >> 5),
        rank_(block % params.cluster),
        block_(block),
        first_row_(static_cast<int64_t>(block / params.cluster) * kRows),
        tiles_(shared) {
    const int blocks = params.size / kColumns;
    first_block_ = rank_ * blocks / params.cluster;
    held_ = (rank_ + 1) * blocks / params.cluster - first_block_;
    const int most = (blocks + params.cluster - 1) / params.cluster;
    squares_ = reinterpret_cast<float*>(shared + most * kTileBytes);
    inverse_ = squares_ + kRows;
    row_scale_ = inverse_ + kRows;
    column_largest_ = row_scale_ + kRows;
  }

  MIFY_DEVICE void run() {
    load();
    device::cluster_sync();  // every block's sums of squares are there
    normalize();
    device::cluster_sync();  // all have read them; and the block's 1 / rms are there
    const float delayed = p_.delayed != nullptr ? device::divide(1.0f, *p_.delayed) : 0.0f;
    float largest = 0.0f;
    for (int tile = 0; tile < held_; ++tile) {
      quantize_rows(tile, delayed, &largest);
      device::block_sync();
      quantize_columns(tile, delayed);
    }
    if (p_.delayed != nullptr) store_largest(largest);
  }

 private:
  static constexpr int kRows = 128, kColumns = 128, kTileBytes = kRows * kColumns * 2;
  static constexpr int kRowsAWarp = 16, kPasses = 8, kTogether = 4;  // two rows a pass, four passes in flight
  static constexpr float kLargest = 448.0f, kSmallestLargest = 0x1p-100f;
  static constexpr int kPitchT = kRows + 16;  // bytes of a feature's row in the transposed tile

  // The row within the tile, and the first of 8 features, that the thread takes in a pass.
  MIFY_DEVICE int row_of(int pass) const { return warp_ * kRowsAWarp + pass * 2 + (lane_ >> 4); }
  MIFY_DEVICE int column() const { return (lane_ & 15) * 8; }
  MIFY_DEVICE uint4* held(int tile, int row) const {
    return reinterpret_cast<uint4*>(tiles_ + tile * kTileBytes + (row * kColumns + column()) * 2);
  }
  MIFY_DEVICE int64_t global_column(int tile) const { return static_cast<int64_t>(first_block_ + tile) * kColumns; }

  MIFY_DEVICE static float low(uint32_t pair) { return device::as_float(pair << 16); }
  MIFY_DEVICE static float high(uint32_t pair) { return device::as_float(pair & 0xffff0000u); }
  MIFY_DEVICE static float larger(float a, float b) { return b > a ? b : a; }  // NaN in b is passed over
  MIFY_DEVICE static float size_of(float x) { return x < 0.0f ? -x : x; }

  // Reads x and residual, stores and keeps their sum, and writes the sums of its squares, a row each.
  MIFY_DEVICE void load() {
    const uint16_t* const x = static_cast<const uint16_t*>(p_.x);
    const uint16_t* const residual = static_cast<const uint16_t*>(p_.residual);
    uint16_t* const total = static_cast<uint16_t*>(p_.total);
    float sums[kPasses] = {};
    for (int tile = 0; tile < held_; ++tile) {
      const int64_t at = global_column(tile) + column();
#pragma unroll
      for (int start = 0; start < kPasses; start += kTogether) {
        uint4 values[kTogether], others[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int64_t row = first_row_ + row_of(start + i);
          values[i] = others[i] = uint4{0, 0, 0, 0};
          if (row >= p_.rows) continue;
          values[i] = *reinterpret_cast<const uint4*>(x + row * p_.x_row + at);
          if (residual != nullptr) others[i] = *reinterpret_cast<const uint4*>(residual + row * p_.residual_row + at);
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int64_t row = first_row_ + row_of(start + i);
          uint32_t words[4] = {values[i].x, values[i].y, values[i].z, values[i].w};
          const uint32_t added[4] = {others[i].x, others[i].y, others[i].z, others[i].w};
#pragma unroll
          for (int word = 0; word < 4; ++word) {
            // Rounded as torch rounds the sum, so that the norm sees what the stream keeps.
            if (residual != nullptr)
              words[word] =
                  device::pack_bf16(low(words[word]) + low(added[word]), high(words[word]) + high(added[word]));
            sums[start + i] += low(words[word]) * low(words[word]);
            sums[start + i] += high(words[word]) * high(words[word]);
          }
          const uint4 sum = {words[0], words[1], words[2], words[3]};
          *held(tile, row_of(start + i)) = sum;
          if (residual != nullptr && row < p_.rows) *reinterpret_cast<uint4*>(total + row * p_.size + at) = sum;
        }
      }
    }
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll
      for (int mask = 1; mask < 16; mask *= 2) sums[pass] += device::shuffle_xor(sums[pass], mask);
      if ((lane_ & 15) == 0) squares_[row_of(pass)] = sums[pass];
    }
  }

  // 1 / rms of each row, from the sums of all blocks of the cluster, in the same order everywhere.
  MIFY_DEVICE void normalize() {
    if (thread_ >= kRows) return;
    float sum = 0.0f;
    for (int rank = 0; rank < p_.cluster; ++rank) sum += device::load_cluster(squares_ + thread_, rank);
    const float inverse = device::divide(1.0f, device::square_root(device::divide(sum, p_.size) + p_.eps));
    inverse_[thread_] = inverse;
    const int64_t row = first_row_ + thread_;
    if (rank_ == 0 && row < p_.rows) p_.inverse[row] = inverse;
  }

  MIFY_DEVICE void weights(int tile, float (&found)[8]) const {
    const int64_t at = global_column(tile) + column();
    if (p_.weight_is_float) {
      const float4* const from = reinterpret_cast<const float4*>(static_cast<const float*>(p_.weight) + at);
      const float4 a = from[0], b = from[1];
      found[0] = a.x, found[1] = a.y, found[2] = a.z, found[3] = a.w;
      found[4] = b.x, found[5] = b.y, found[6] = b.z, found[7] = b.w;
      return;
    }
    const uint4 pairs = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p_.weight) + at);
    const uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
    for (int word = 0; word < 4; ++word) found[word * 2] = low(words[word]), found[word * 2 + 1] = high(words[word]);
  }

  // The norm of a tile, rounded to bf16 and kept in place of the sum; its rows in FP8.
  MIFY_DEVICE void quantize_rows(int tile, float delayed, float* largest) {
    float weight[8];
    weights(tile, weight);
#pragma unroll 2
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = row_of(pass);
      const bool there = first_row_ + row < p_.rows;
      const float inverse = inverse_[row];
      const uint4 kept = *held(tile, row);
      uint32_t words[4] = {kept.x, kept.y, kept.z, kept.w};
      float top = 0.0f;
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        const float a = low(words[word]) * inverse * weight[word * 2];
        const float b = high(words[word]) * inverse * weight[word * 2 + 1];
        // Not -0 nor NaN of an infinite weight: products read the padding, too.
        words[word] = there ? device::pack_bf16(a, b) : 0u;
        top = larger(top, size_of(low(words[word])));
        top = larger(top, size_of(high(words[word])));
      }
      *held(tile, row) = uint4{words[0], words[1], words[2], words[3]};
      float factor = delayed;
      if (p_.delayed == nullptr) {
#pragma unroll
        for (int mask = 1; mask < 16; mask *= 2) top = larger(top, device::shuffle_xor(top, mask));
        top = larger(kSmallestLargest, top);
        factor = device::divide(kLargest, top);
        if ((lane_ & 15) == 0) row_scale_[row] = device::divide(top, kLargest);
      } else {
        *largest = larger(*largest, top);
      }
      if (!there) continue;
      uint2 bytes;
      bytes.x = quantized(words[0], factor) | quantized(words[1], factor) << 16;
      bytes.y = quantized(words[2], factor) | quantized(words[3], factor) << 16;
      uint8_t* const to = p_.data + (first_row_ + row) * p_.size + global_column(tile) + column();
      *reinterpret_cast<uint2*>(to) = bytes;
    }
  }

  MIFY_DEVICE static uint32_t quantized(uint32_t pair, float factor) {
    return device::pack_e4m3(low(pair) * factor, high(pair) * factor);
  }

  // The same tile by its columns: two features and 32 rows a thread, then whole lines of 128 rows to memory.
  MIFY_DEVICE void quantize_columns(int tile, float delayed) {
    char* const memory = tiles_ + tile * kTileBytes;
    const int pair = (warp_ & 1) * 32 + lane_, part = warp_ >> 1;
    uint32_t values[32];
    float tops[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      values[i] = reinterpret_cast<const uint32_t*>(memory)[(part * 32 + i) * (kColumns / 2) + pair];
      tops[0] = larger(tops[0], size_of(low(values[i])));
      tops[1] = larger(tops[1], size_of(high(values[i])));
    }
    const bool blocks = p_.delayed == nullptr;
    if (blocks) {
      column_largest_[part * kColumns + pair * 2] = tops[0];
      column_largest_[part * kColumns + pair * 2 + 1] = tops[1];
      const int64_t row = first_row_ + thread_;
      if (thread_ < kRows && row < p_.rows)
        p_.scale[static_cast<int64_t>(first_block_ + tile) * p_.rows + row] = row_scale_[thread_];
    }
    device::block_sync();  // the tile has been read, and all parts' largest values are there
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const int feature = pair * 2 + which;
      float factor = delayed;
      if (blocks) {
        float top = kSmallestLargest;
#pragma unroll
        for (int other = 0; other < 4; ++other) top = larger(top, column_largest_[other * kColumns + feature]);
        factor = device::divide(kLargest, top);
        if (part == 0)
          p_.scale_t[first_row_ / kRows * p_.size + global_column(tile) + feature] = device::divide(top, kLargest);
      }
      const auto value = [&](int i) { return (which ? high(values[i]) : low(values[i])) * factor; };
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t words[4];
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const int i = half * 16 + word * 4;
          words[word] = device::pack_e4m3(value(i), value(i + 1)) | device::pack_e4m3(value(i + 2), value(i + 3)) << 16;
        }
        *reinterpret_cast<uint4*>(memory + feature * kPitchT + part * 32 + half * 16) =
            uint4{words[0], words[1], words[2], words[3]};
      }
    }
    device::block_sync();
#pragma unroll
    for (int at = thread_; at < kColumns * kRows / 16; at += kNormFp8Threads) {
      const int feature = at / (kRows / 16), piece = at % (kRows / 16) * 16;
      uint8_t* const to = p_.data_t + (global_column(tile) + feature) * p_.rows_padded + first_row_ + piece;
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(memory + feature * kPitchT + piece);
    }
  }

  MIFY_DEVICE void store_largest(float largest) {
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) largest = larger(largest, device::shuffle_xor(largest, mask));
    if (lane_ == 0) row_scale_[warp_] = largest;
    device::block_sync();
    if (thread_ != 0) return;
    for (int warp = 1; warp < kNormFp8Threads / 32; ++warp) largest = larger(largest, row_scale_[warp]);
    p_.largest[block_] = largest;
  }

  const NormFp8Params& p_;
  const int thread_, lane_, warp_, rank_, block_;
  const int64_t first_row_;
  char* const tiles_;  // `held_` tiles of 128 rows by 128 features, bf16
  int first_block_, held_;
  float* squares_;         // (128,) this block's sums of squares; the whole cluster reads them
  float* inverse_;         // (128,)
  float* row_scale_;       // (128,)
  float* column_largest_;  // (4, 128)
};

}  // namespace mify
