// Rows from a plan: a gather of the shards' tokens with patches between them, a loss bit a token, segment starts.
// Twin of mify/data/rows_ref.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "packing/window.hpp"

namespace mify {

// A plan's arrays as they lie in memory; see WindowPlan.
struct PlanView {
  std::span<const int64_t> bin_starts, piece_document, span_starts, span_source;
  std::span<const uint8_t> piece_mode;
  std::span<const int32_t> piece_middle, span_length;
  std::span<const uint32_t> patches;
};

struct RowOptions {
  int64_t context = 0;
  uint32_t pad_id = 0;
  std::vector<uint32_t> sentinels;   // carry no loss
  bool loss_on_middle_only = false;  // of permuted pieces
  std::span<const uint64_t> skip;    // sorted keys of documents that are replaced by padding
  unsigned threads = 1;
};

// `bins` (R) are numbers of bins; row r takes `tokens` + r * context (of shards.token_bytes each), loss_bits + r *
// ceil(context / 8), used[r]. Appends the rows' segments to `segment_starts`, and to `row_starts` (which holds a 0)
// where each row's segments end.
void make_rows(const PlanView& plan, const ShardsView& shards, std::span<const int64_t> bins, const RowOptions& options,
               void* tokens, uint8_t* loss_bits, int32_t* used, std::vector<int32_t>& segment_starts,
               std::vector<int64_t>& row_starts);

}  // namespace mify
