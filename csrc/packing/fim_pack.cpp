#include "packing/fim_pack.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "threads.hpp"

namespace mify {
namespace {

constexpr size_t kRowsAtOnce = 4;

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument(what);
}

// A row's part of a table of starts: ascending from 0 and below the context.
void check_table(const char* name, const int64_t* rows, const int32_t* starts, int64_t size,
                 const FimPackParams& params) {
  if (rows[0] != 0) refuse(std::string(name) + ": the first row begins at " + std::to_string(rows[0]) + ", not 0");
  for (int64_t row = 0; row < params.num_rows; ++row) {
    const int64_t first = rows[row], last = rows[row + 1];
    if (first >= last || last > size) {
      refuse(std::string(name) + ": row " + std::to_string(row) + " has entries " + std::to_string(first) + " to " +
             std::to_string(last) + " of " + std::to_string(size));
    }
    for (int64_t i = first; i < last; ++i) {
      const bool ordered = i == first ? starts[i] == 0 : starts[i] > starts[i - 1] && starts[i] < params.context;
      if (!ordered) {
        refuse(std::string(name) + ": entry " + std::to_string(i) + " starts at " + std::to_string(starts[i]) +
               "; starts ascend from 0 and stay below the context " + std::to_string(params.context));
      }
    }
  }
}

void check_segments(const FimPackParams& params) {
  if (params.num_rows * params.context > INT32_MAX) refuse("more than 2^31 - 1 tokens do not fit cu_seqlens");
  if (params.segment_rows[params.num_rows] >= params.cu_length) {
    refuse("max_segments: " + std::to_string(params.segment_rows[params.num_rows]) +
           " segments do not fit in cu_seqlens of length " + std::to_string(params.cu_length));
  }
  check_table("segments", params.segment_rows, params.segment_starts, params.num_segments, params);
}

void write_bounds(const FimPackParams& params) {
  int64_t at = 0;
  for (int64_t row = 0; row < params.num_rows; ++row) {
    for (; at < params.segment_rows[row + 1]; ++at) {
      params.cu_seqlens[at] = static_cast<int32_t>(row * params.context + params.segment_starts[at]);
    }
  }
  std::fill(params.cu_seqlens + at, params.cu_seqlens + params.cu_length,
            static_cast<int32_t>(params.num_rows * params.context));
}

// Calls act(begin, end, entry) for each segment or span of a row.
template <class Act>
void for_parts(const int64_t* rows, const int32_t* starts, int64_t row, int64_t context, Act act) {
  const int64_t last = rows[row + 1];
  for (int64_t entry = rows[row]; entry < last; ++entry) {
    act(int64_t{starts[entry]}, entry + 1 < last ? int64_t{starts[entry + 1]} : context, entry);
  }
}

void count_positions(int64_t* positions, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; ++at) positions[at] = at - begin;
}

template <class T>
void unpack_row(const FimPackParams& params, int64_t row) {
  const int64_t context = params.context, base = row * context;
  const T* const from = static_cast<const T*>(params.rows) + base;
  int64_t* const tokens = params.tokens + base;
  int64_t* const labels = params.labels + base;
  std::copy_n(from, context, tokens);
  // Target t carries loss: the label stands one place earlier. The row's first token is nobody's target.
  const uint8_t* const bits = params.loss_bits + row * ((context + 7) / 8);
  const auto label = [&](int64_t target) {
    return bits[target >> 3] >> (target & 7) & 1 ? int64_t{from[target]} : kIgnoreLabel;
  };
  int64_t target = 1;
  for (; target < context && target % 8 != 0; ++target) labels[target - 1] = label(target);
  for (; target + 8 <= context; target += 8) {  // whole bytes, most of them all or nothing
    const uint8_t byte = bits[target >> 3];
    if (byte == 0xFF) {
      std::copy_n(from + target, 8, labels + target - 1);
    } else if (byte == 0) {
      std::fill_n(labels + target - 1, 8, kIgnoreLabel);
    } else {
      for (int64_t i = 0; i < 8; ++i) labels[target - 1 + i] = label(target + i);
    }
  }
  for (; target < context; ++target) labels[target - 1] = label(target);
  labels[context - 1] = kIgnoreLabel;
  for_parts(params.segment_rows, params.segment_starts, row, context, [&](int64_t begin, int64_t end, int64_t) {
    count_positions(params.positions + base, begin, end);
    labels[end - 1] = kIgnoreLabel;
  });
}

template <class T>
void pack_row(const FimPackParams& params, int64_t row) {
  const int64_t context = params.context, base = row * context;
  int64_t* const tokens = params.tokens + base;
  int64_t* const labels = params.labels + base;
  for_parts(params.span_rows, params.span_starts, row, context, [&](int64_t begin, int64_t end, int64_t span) {
    const int64_t source = params.span_source[span];
    if (source == kPadding) {
      std::fill(tokens + begin, tokens + end, params.pad_id);
    } else {
      const T* const from =
          source >= 0 ? static_cast<const T*>(params.buffer) + source : static_cast<const T*>(params.patches) + ~source;
      std::copy_n(from, end - begin, tokens + begin);
    }
  });
  for_parts(params.segment_rows, params.segment_starts, row, context, [&](int64_t begin, int64_t end, int64_t segment) {
    count_positions(params.positions + base, begin, end);
    const int64_t loss = std::clamp(int64_t{params.segment_loss[segment]}, begin + 1, end);
    std::fill(labels + begin, labels + loss - 1, kIgnoreLabel);
    std::copy(tokens + loss, tokens + end, labels + loss - 1);
    labels[end - 1] = kIgnoreLabel;
  });
  for_parts(params.span_rows, params.span_starts, row, context, [&](int64_t begin, int64_t end, int64_t span) {
    const int64_t source = params.span_source[span];
    if (source >= 0) return;
    for (int64_t at = std::max(begin, int64_t{1}); at < end; ++at) {
      const bool is_sentinel = std::ranges::find(params.sentinels, tokens[at]) != std::end(params.sentinels);
      if (source == kPadding || is_sentinel) labels[at - 1] = kIgnoreLabel;
    }
  });
}

template <class Act>
void for_rows(const FimPackParams& params, unsigned threads, Act act) {
  ThreadTeam team(threads);
  team.for_ranges(static_cast<size_t>(params.num_rows), kRowsAtOnce, [&](unsigned, size_t first, size_t last) {
    for (size_t row = first; row < last; ++row) act(static_cast<int64_t>(row));
  });
}

}  // namespace

void unpack_rows(const FimPackParams& params, int token_bytes, unsigned threads) {
  check_segments(params);
  write_bounds(params);
  for_rows(params, threads, [&](int64_t row) {
    token_bytes == 2 ? unpack_row<uint16_t>(params, row) : unpack_row<uint32_t>(params, row);
  });
}

void pack_spans(const FimPackParams& params, int token_bytes, unsigned threads) {
  check_segments(params);
  check_table("spans", params.span_rows, params.span_starts, params.num_spans, params);
  for (int64_t row = 0; row < params.num_rows; ++row) {
    for_parts(params.span_rows, params.span_starts, row, params.context, [&](int64_t begin, int64_t end, int64_t span) {
      const int64_t source = params.span_source[span], length = end - begin;
      if (source == kPadding) return;
      const int64_t place = source >= 0 ? source : ~source;
      const int64_t size = source >= 0 ? params.buffer_size : params.patches_size;
      if (place > size - length) {
        refuse("spans: entry " + std::to_string(span) + " takes " + std::to_string(length) + " tokens from place " +
               std::to_string(place) + " of " + (source >= 0 ? "the buffer of " : "patches of ") +
               std::to_string(size));
      }
    });
  }
  write_bounds(params);
  for_rows(params, threads,
           [&](int64_t row) { token_bytes == 2 ? pack_row<uint16_t>(params, row) : pack_row<uint32_t>(params, row); });
}

}  // namespace mify
