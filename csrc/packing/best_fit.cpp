#include "packing/best_fit.hpp"

#include <bit>
#include <limits>
#include <stdexcept>
#include <string>

namespace mify {
namespace {

constexpr int32_t kNone = -1;

// Free sizes in use, as a bitmap with two summaries above it: the smallest one that is large enough in a few steps.
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

// Numbers of the pieces, longest first, ties by number.
std::vector<int32_t> longest_first(std::span<const int32_t> lengths, int32_t capacity) {
  std::vector<int32_t> place(static_cast<size_t>(capacity) + 2, 0);
  for (const int32_t length : lengths) ++place[static_cast<size_t>(capacity - length) + 1];
  for (size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
  std::vector<int32_t> order(lengths.size());
  for (size_t i = 0; i < lengths.size(); ++i) {
    order[static_cast<size_t>(place[static_cast<size_t>(capacity - lengths[i])]++)] = static_cast<int32_t>(i);
  }
  return order;
}

}  // namespace

Bins best_fit_decreasing(std::span<const int32_t> lengths, int32_t capacity, int32_t max_pieces) {
  if (capacity < 1 || max_pieces < 1) throw std::invalid_argument("capacity and max_pieces must be positive");
  if (lengths.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw std::invalid_argument("at most 2^31 - 1 pieces at once");
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] < 0 || lengths[i] > capacity) {
      throw std::invalid_argument("lengths[" + std::to_string(i) + "] = " + std::to_string(lengths[i]) +
                                  " is not in [0, capacity = " + std::to_string(capacity) + "]");
    }
  }
  const std::vector<int32_t> order = longest_first(lengths, capacity);
  SizeSet sizes(capacity);
  // Open bins of one free size are a stack: `top` by size, `below` by bin.
  std::vector<int32_t> top(static_cast<size_t>(capacity) + 1, kNone), below, filled;
  std::vector<int32_t> bin_of(lengths.size());
  for (size_t k = 0; k < order.size(); ++k) {
    const int32_t length = lengths[static_cast<size_t>(order[k])];
    int32_t room = sizes.at_least(length), bin;
    if (room == kNone) {
      bin = static_cast<int32_t>(below.size());
      below.push_back(kNone);
      filled.push_back(0);
      room = capacity;
    } else {
      bin = top[static_cast<size_t>(room)];
      top[static_cast<size_t>(room)] = below[static_cast<size_t>(bin)];
      if (top[static_cast<size_t>(room)] == kNone) sizes.erase(room);
    }
    bin_of[k] = bin;
    room -= length;
    if (room > 0 && ++filled[static_cast<size_t>(bin)] < max_pieces) {
      if (top[static_cast<size_t>(room)] == kNone) sizes.insert(room);
      below[static_cast<size_t>(bin)] = top[static_cast<size_t>(room)];
      top[static_cast<size_t>(room)] = bin;
    }
  }

  Bins bins;
  bins.starts.assign(below.size() + 1, 0);
  for (const int32_t bin : bin_of) ++bins.starts[static_cast<size_t>(bin) + 1];
  for (size_t bin = 0; bin < below.size(); ++bin) bins.starts[bin + 1] += bins.starts[bin];
  std::vector<int64_t> place(bins.starts.begin(), bins.starts.end() - 1);
  bins.pieces.resize(order.size());
  for (size_t k = 0; k < order.size(); ++k) {
    bins.pieces[static_cast<size_t>(place[static_cast<size_t>(bin_of[k])]++)] = order[k];
  }
  return bins;
}

}  // namespace mify
