#include "minhash/star_pass.hpp"

#include <stdexcept>

namespace mify {

std::vector<PassRemoval> StarPass::add(std::span<const VerifiedPair> pairs) {
  std::vector<PassRemoval> removals;
  for (size_t begin = 0; begin < pairs.size();) {
    const uint64_t later = pairs[begin].later;
    if (later < next_ || later >= removed_.size()) {
      throw std::invalid_argument("pairs must come in the order of their later documents, each in one call");
    }
    PassRemoval best{later, 0, -1};
    size_t at = begin;
    for (; at < pairs.size() && pairs[at].later == later; ++at) {
      const VerifiedPair& pair = pairs[at];
      if (pair.earlier >= later || (at > begin && pair.earlier <= pairs[at - 1].earlier)) {
        throw std::invalid_argument("earlier documents must ascend and stand before the later one");
      }
      if (removed_[pair.earlier]) continue;
      clusters_.unite(later, pair.earlier);
      joined_[later] = joined_[pair.earlier] = true;
      // Of equal similarities the earliest kept document is the evidence, and it came first.
      if (pair.jaccard > best.jaccard) best = {later, pair.earlier, pair.jaccard};
    }
    if (best.jaccard >= 0) {
      removed_[later] = true;
      removals.push_back(best);
    }
    next_ = later + 1;
    begin = at;
  }
  return removals;
}

}  // namespace mify
