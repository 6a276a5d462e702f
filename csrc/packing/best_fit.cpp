#include "packing/best_fit.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace mify {
namespace {

constexpr int32_t kNone = -1;

// Free sizes in use, as a bitmap with summaries above it: the smallest one that is large enough in a few steps.
class SizeSet {
 public:
  explicit SizeSet(int32_t largest) {
    size_t words = static_cast<size_t>(largest) / 64 + 1;
    for (;; words = words / 64 + 1) {
      levels_.emplace_back(words, uint64_t{0});
      if (words == 1) break;
    }
  }
  void insert(int32_t size) {
    size_t at = static_cast<size_t>(size);
    for (std::vector<uint64_t>& level : levels_) {
      level[at >> 6] |= uint64_t{1} << (at & 63);
      at >>= 6;
    }
  }
  void erase(int32_t size) {
    size_t at = static_cast<size_t>(size);
    for (std::vector<uint64_t>& level : levels_) {
      level[at >> 6] &= ~(uint64_t{1} << (at & 63));
      if (level[at >> 6] != 0) break;
      at >>= 6;
    }
  }
  // The smallest member >= size, or kNone.
  int32_t at_least(int32_t size) const {
    size_t at = static_cast<size_t>(size);
    for (size_t height = 0; height < levels_.size(); ++height) {
      const std::vector<uint64_t>& level = levels_[height];
      const uint64_t rest = at >> 6 < level.size() ? level[at >> 6] & ~uint64_t{0} << (at & 63) : 0;
      if (rest != 0) {
        at = (at & ~size_t{63}) | static_cast<size_t>(std::countr_zero(rest));
        while (height-- > 0) at = at << 6 | static_cast<size_t>(std::countr_zero(levels_[height][at]));
        return static_cast<int32_t>(at);
      }
      at = (at >> 6) + 1;
    }
    return kNone;
  }

 private:
  std::vector<std::vector<uint64_t>> levels_;
};

struct OpenBin {
  int32_t bin, pieces;
};

// Open bins by their free size, each size a stack. A stack is a chain of cache lines, so that neither taking a bin nor
// putting it back misses the cache once for every bin, as a list threaded through the bins does.
class OpenBins {
 public:
  explicit OpenBins(int32_t capacity) : sizes_(capacity), top_(static_cast<size_t>(capacity) + 1, kNone) {}

  int32_t smallest_of(int32_t size) const { return sizes_.at_least(size); }
  bool has(int32_t size) const { return top_[static_cast<size_t>(size)] != kNone; }

  void push(int32_t size, OpenBin bin) {
    int32_t& top = top_[static_cast<size_t>(size)];
    if (top == kNone) sizes_.insert(size);
    if (top == kNone || lines_[static_cast<size_t>(top)].fill == kFill) {
      const int32_t fresh = new_line();
      lines_[static_cast<size_t>(fresh)].below = top;
      lines_[static_cast<size_t>(fresh)].fill = 0;
      top = fresh;
    }
    Line& line = lines_[static_cast<size_t>(top)];
    line.bins[line.fill++] = bin;
  }
  OpenBin pop(int32_t size) {
    int32_t& top = top_[static_cast<size_t>(size)];
    Line& line = lines_[static_cast<size_t>(top)];
    const OpenBin bin = line.bins[--line.fill];
    if (line.fill == 0) {
      const int32_t below = line.below;
      line.below = unused_;
      unused_ = top;
      top = below;
      if (below == kNone) sizes_.erase(size);
    }
    return bin;
  }

 private:
  static constexpr int32_t kFill = 7;
  struct alignas(64) Line {
    OpenBin bins[kFill];
    int32_t below, fill;
  };

  int32_t new_line() {
    if (unused_ == kNone) {
      lines_.emplace_back();
      return static_cast<int32_t>(lines_.size()) - 1;
    }
    const int32_t line = unused_;
    unused_ = lines_[static_cast<size_t>(line)].below;
    return line;
  }

  SizeSet sizes_;
  std::vector<int32_t> top_;
  std::vector<Line> lines_;
  int32_t unused_ = kNone;
};

uint64_t pair_of(int32_t high, int32_t low) {
  return uint64_t{static_cast<uint32_t>(high)} << 32 | static_cast<uint32_t>(low);
}
int32_t high_of(uint64_t pair) {
  return static_cast<int32_t>(pair >> 32);
}
int32_t low_of(uint64_t pair) {
  return static_cast<int32_t>(pair);
}

// (capacity - length, piece), ascending: longest first, ties by number. By digits of seven bits, so that what is
// written goes to 128 places at a time; to 8,192 at once every write would miss.
void sort_longest_first(std::span<const int32_t> lengths, int32_t capacity, std::vector<uint64_t>& pairs,
                        std::vector<uint64_t>& besides) {
  constexpr int kDigit = 7, kMost = 5;
  const int digits = (std::bit_width(static_cast<uint32_t>(capacity)) + kDigit - 1) / kDigit;
  std::array<std::array<uint32_t, 1 << kDigit>, kMost> places{};
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int32_t room = capacity - lengths[i];
    if (lengths[i] < 0 || room < 0) {
      throw std::invalid_argument("lengths[" + std::to_string(i) + "] = " + std::to_string(lengths[i]) +
                                  " is not in [0, capacity = " + std::to_string(capacity) + "]");
    }
    pairs[i] = pair_of(room, static_cast<int32_t>(i));
    for (int digit = 0; digit < digits; ++digit) ++places[digit][room >> (digit * kDigit) & ((1 << kDigit) - 1)];
  }
  for (int digit = 0; digit < digits; ++digit) {
    uint32_t sum = 0;
    for (uint32_t& place : places[digit]) sum += std::exchange(place, sum);
    const int shift = 32 + digit * kDigit;
    for (const uint64_t pair : pairs) besides[places[digit][pair >> shift & ((1 << kDigit) - 1)]++] = pair;
    pairs.swap(besides);
  }
}

// From (bin, piece) in the order of placing to pieces by bin. First by groups of bins, of which each then fits the
// cache.
Bins group_by_bin(std::vector<uint64_t>& placed, std::vector<uint64_t>& besides, int32_t num_bins) {
  constexpr int kGroup = 9;
  std::vector<uint32_t> ends((static_cast<size_t>(num_bins) >> kGroup) + 1, 0);
  for (const uint64_t pair : placed) ++ends[pair >> (32 + kGroup)];
  uint32_t sum = 0;
  for (uint32_t& end : ends) sum += std::exchange(end, sum);
  for (const uint64_t pair : placed) besides[ends[pair >> (32 + kGroup)]++] = pair;

  Bins bins;
  bins.starts.resize(static_cast<size_t>(num_bins) + 1);
  bins.pieces.resize(placed.size());
  uint32_t first = 0;
  for (size_t group = 0; group < ends.size(); ++group) {
    const auto first_bin = static_cast<int32_t>(group << kGroup);
    const size_t size = std::min(size_t{1} << kGroup, static_cast<size_t>(num_bins - first_bin));
    std::array<uint32_t, 1 << kGroup> place{};
    for (uint32_t i = first; i < ends[group]; ++i) ++place[static_cast<size_t>(high_of(besides[i]) - first_bin)];
    uint32_t at = first;
    for (size_t bin = 0; bin < size; ++bin) {
      bins.starts[static_cast<size_t>(first_bin) + bin] = at;
      at += std::exchange(place[bin], at);
    }
    for (uint32_t i = first; i < ends[group]; ++i) {
      bins.pieces[place[static_cast<size_t>(high_of(besides[i]) - first_bin)]++] = low_of(besides[i]);
    }
    first = ends[group];
  }
  bins.starts.back() = static_cast<int64_t>(placed.size());
  return bins;
}

}  // namespace

Bins best_fit_decreasing(std::span<const int32_t> lengths, int32_t capacity, int32_t max_pieces) {
  if (capacity < 1 || max_pieces < 1) throw std::invalid_argument("capacity and max_pieces must be positive");
  if (lengths.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw std::invalid_argument("at most 2^31 - 1 pieces at once");
  }
  std::vector<uint64_t> pairs(lengths.size()), besides(lengths.size());
  sort_longest_first(lengths, capacity, pairs, besides);
  OpenBins open(capacity);
  int32_t num_bins = 0;
  int32_t room = kNone;  // the free size that the last piece found best
  int32_t previous = kNone;
  for (uint64_t& pair : pairs) {
    const int32_t length = capacity - high_of(pair);
    // The next piece of the same length finds the same size best, unless what the last one left is large enough too.
    if (length != previous || room == kNone || room >= 2 * int64_t{length} || !open.has(room)) {
      room = open.smallest_of(length);
    }
    previous = length;
    OpenBin bin = room == kNone ? OpenBin{num_bins++, 0} : open.pop(room);
    const int32_t left = (room == kNone ? capacity : room) - length;
    if (++bin.pieces < max_pieces && left > 0) open.push(left, bin);
    pair = pair_of(bin.bin, low_of(pair));
  }
  return group_by_bin(pairs, besides, num_bins);
}

}  // namespace mify
