// The gather-and-patch pass of one block: kTile tokens of one row. Two neighbouring tokens a thread, so that the three
// int64 outputs, 24 of the 26 bytes that a token costs, are written 16 bytes at a time and without gaps in a warp.
//
// Which segment and span a token lies in is searched in its row's tables (tens to hundreds of entries, in the L1 cache
// after the first warp) with steps that are the same for all threads; the thread's next two tokens only step on.
#pragma once

#include <cstdint>

#include "attention/device_ops.cuh"
#include "packing/fim_pack.hpp"

namespace mify {

inline constexpr int kFimPackThreads = 256;
inline constexpr int kFimPackPairs = 4;
inline constexpr int kFimPackTile = 2 * kFimPackThreads * kFimPackPairs;

// One store of 16 bytes; the compiler makes two of an assignment.
MIFY_DEVICE void store_pair(int64_t* to, int64_t first, int64_t second) {
#ifdef MIFY_CUDA_EMULATION
  to[0] = first;
  to[1] = second;
#else
  asm volatile("st.global.v2.b64 [%0], {%1, %2};" ::"l"(to), "l"(first), "l"(second) : "memory");
#endif
}

// The entries of a row, their starts ascending from 0.
struct RowTable {
  const int32_t* starts;
  int64_t first, count;

  MIFY_DEVICE RowTable(const int32_t* all, const int64_t* rows, int64_t row, int64_t size) : starts(all) {
    const int64_t low = rows[row], high = rows[row + 1];
    first = low < 0 ? 0 : low > size ? size : low;
    const int64_t last = high > size ? size : high;
    count = last > first ? last - first : 0;
  }
  // The last entry that starts at or before `at`, or 0.
  MIFY_DEVICE int64_t find(int64_t at) const {
    int64_t step = 1, found = 0;
    while (step < count) step *= 2;
    for (; step > 0; step /= 2) {
      const int64_t candidate = found + step;
      if (candidate < count && starts[first + candidate] <= at) found = candidate;
    }
    return found;
  }
  MIFY_DEVICE int64_t start(int64_t entry) const { return count > 0 ? starts[first + entry] : 0; }
  MIFY_DEVICE bool starts_next(int64_t entry, int64_t at) const {
    return entry + 1 < count && starts[first + entry + 1] <= at;
  }
};

template <class T, bool spans>
class FimPackBlock {
 public:
  MIFY_DEVICE FimPackBlock(const FimPackParams& params, uint32_t block, int thread)
      : p_(params),
        thread_(thread),
        tiles_(static_cast<uint32_t>((params.context + kFimPackTile - 1) / kFimPackTile)),
        row_(block / tiles_),
        tile_(block % tiles_),
        segments_(params.segment_starts, params.segment_rows, row_, params.num_segments),
        spans_(spans ? params.span_starts : params.segment_starts, spans ? params.span_rows : params.segment_rows, row_,
               spans ? params.num_spans : params.num_segments) {}

  static int64_t blocks(const FimPackParams& params) {
    return params.num_rows * ((params.context + kFimPackTile - 1) / kFimPackTile);
  }

  MIFY_DEVICE void run() {
    write_bounds();
    const bool paired = p_.context % 2 == 0;  // rows begin at 16 bytes
    for (int pair = 0; pair < kFimPackPairs; ++pair) {
      const int64_t at = tile_ * kFimPackTile + 2 * (pair * kFimPackThreads + thread_);
      if (at >= p_.context) return;
      segment_ = segments_.find(at);
      if (spans) span_ = spans_.find(at);
      const Seen first = see(at);
      const Seen second = at + 1 < p_.context ? step_and_see(at + 1) : Seen{0, 0, false};
      const Seen third = at + 2 < p_.context ? step_and_see(at + 2) : Seen{0, 0, false};
      const int64_t base = row_ * p_.context + at;
      const int64_t label = second.loss ? second.token : kIgnoreLabel;
      const int64_t next_label = third.loss ? third.token : kIgnoreLabel;
      if (paired) {
        store_pair(p_.tokens + base, first.token, second.token);
        store_pair(p_.labels + base, label, next_label);
        store_pair(p_.positions + base, first.position, second.position);
        continue;
      }
      p_.tokens[base] = first.token;
      p_.labels[base] = label;
      p_.positions[base] = first.position;
      if (at + 1 < p_.context) {
        p_.tokens[base + 1] = second.token;
        p_.labels[base + 1] = next_label;
        p_.positions[base + 1] = second.position;
      }
    }
  }

 private:
  struct Seen {
    int64_t token, position;
    bool loss;  // as a target: never of a segment's first token
  };

  MIFY_DEVICE Seen see(int64_t at) const {
    const int64_t position = at - segments_.start(segment_);
    if constexpr (!spans) {
      const uint8_t bits = p_.loss_bits[row_ * ((p_.context + 7) / 8) + (at >> 3)];
      const int64_t token = static_cast<const T*>(p_.rows)[row_ * p_.context + at];
      return {token, position, position > 0 && (bits >> (at & 7) & 1) != 0};
    } else {
      const int64_t source = spans_.count > 0 ? p_.span_source[spans_.first + span_] : kPadding;
      if (source == kPadding) return {p_.pad_id, position, false};
      const bool patched = source < 0;
      const int64_t place = (patched ? ~source : source) + at - spans_.start(span_);
      if (place < 0 || place >= (patched ? p_.patches_size : p_.buffer_size)) return {kNoToken, position, false};
      const int64_t token = static_cast<const T*>(patched ? p_.patches : p_.buffer)[place];
      bool loss = position > 0 && segments_.count > 0 && at >= p_.segment_loss[segments_.first + segment_];
      for (int i = 0; i < kMostSentinels; ++i) loss = loss && !(patched && token == p_.sentinels[i]);
      return {token, position, loss};
    }
  }
  MIFY_DEVICE Seen step_and_see(int64_t at) {
    while (segments_.starts_next(segment_, at)) ++segment_;
    if (spans) {
      while (spans_.starts_next(span_, at)) ++span_;
    }
    return see(at);
  }

  // A row's first block writes where its segments start; all blocks together what is left of the fixed length.
  MIFY_DEVICE void write_bounds() const {
    for (int64_t i = thread_; tile_ == 0 && i < segments_.count; i += kFimPackThreads) {
      const int64_t to = segments_.first + i;
      if (to < p_.cu_length) {
        p_.cu_seqlens[to] = static_cast<int32_t>(row_ * p_.context + p_.segment_starts[to]);
      }
    }
    const int64_t written = p_.segment_rows[p_.num_rows];
    const int64_t first = written < 0 ? 0 : written > p_.num_segments ? p_.num_segments : written;
    const int64_t stride = p_.num_rows * tiles_ * kFimPackThreads;
    for (int64_t to = first + (row_ * tiles_ + tile_) * kFimPackThreads + thread_; to < p_.cu_length; to += stride) {
      p_.cu_seqlens[to] = static_cast<int32_t>(p_.num_rows * p_.context);
    }
  }

  const FimPackParams& p_;
  const int thread_;
  const uint32_t tiles_;
  const int64_t row_, tile_;
  const RowTable segments_, spans_;
  int64_t segment_ = 0, span_ = 0;
};

}  // namespace mify
