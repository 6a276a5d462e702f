// Best-fit decreasing: pieces into bins of one capacity. Twin of mify/data/packing.py.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mify {

struct Bins {
  std::vector<int64_t> starts;  // (bins + 1) first entry of each bin in `pieces`
  std::vector<int32_t> pieces;  // piece numbers, bin after bin, in the order in which they were placed
};

// Longest first, ties by number; each goes into the fullest bin that takes it, of equally full ones into the one filled
// last, else into a new bin. A bin takes at most `max_pieces`.
// Throws std::invalid_argument where a length is not in [0, capacity].
Bins best_fit_decreasing(std::span<const int32_t> lengths, int32_t capacity, int32_t max_pieces);

}  // namespace mify
