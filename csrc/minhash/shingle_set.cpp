#include "minhash/shingle_set.hpp"

#include <algorithm>

namespace mify {

std::vector<uint64_t> ShingleSets::unique(std::string_view text) {
  hashes_.clear();
  shingler_.start(text);
  for (auto block = shingler_.next(); !block.empty(); block = shingler_.next()) {
    hashes_.insert(hashes_.end(), block.begin(), block.end());
  }
  table_.reset(hashes_.size());
  size_t kept = 0;
  for (const uint64_t hash : hashes_) {
    hashes_[kept] = hash;
    kept += table_.insert(hash) ? 1 : 0;
  }
  return {hashes_.begin(), hashes_.begin() + static_cast<ptrdiff_t>(kept)};
}

void ShingleSets::load(const std::vector<uint64_t>& set) {
  table_.reset(set.size());
  for (const uint64_t hash : set) table_.insert(hash);
  loaded_ = set.size();
}

double ShingleSets::jaccard(const std::vector<uint64_t>& other, double threshold) const {
  const size_t x = loaded_, y = other.size();
  if (x == 0 || y == 0) return threshold > 0 ? -1 : 0;
  // J <= min / max, and rounding is monotonic, so this refuses no pair that the last line would accept.
  if (static_cast<double>(std::min(x, y)) / static_cast<double>(std::max(x, y)) < threshold) return -1;
  // J >= t needs t / (1 + t) * (x + y) common values; one less stays on the safe side of rounding.
  const double needed = threshold / (1 + threshold) * static_cast<double>(x + y) - 1;
  const double spare = static_cast<double>(y) - needed;
  size_t misses = 0;
  for (size_t at = 0; at < y;) {
    const size_t stop = std::min(y, at + 64);
    for (; at < stop; ++at) misses += table_.contains(other[at]) ? 0 : 1;
    if (static_cast<double>(misses) > spare) return -1;
  }
  const size_t common = y - misses;
  return static_cast<double>(common) / static_cast<double>(x + y - common);
}

}  // namespace mify
