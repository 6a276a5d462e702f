// The star rule over verified pairs that come in from outside, in the order of the documents (see star.hpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "minhash/lsh.hpp"

namespace mify {

struct VerifiedPair {
  uint64_t later, earlier;  // documents, numbered in the stable order
  double jaccard;
};

struct PassRemoval {
  uint64_t removed, kept;
  double jaccard;
};

// Memory: 8 bytes and two bits a document, whatever the number of pairs.
class StarPass {
 public:
  explicit StarPass(uint64_t num_documents)
      : clusters_(num_documents), removed_(num_documents, false), joined_(num_documents, false) {}

  // Takes pairs sorted by (later, earlier), after those of all earlier calls; a document's pairs come in one call.
  // Returns the removals they decide. Throws std::invalid_argument for pairs out of order or range.
  std::vector<PassRemoval> add(std::span<const VerifiedPair> pairs);

  // The smallest document of the cluster of `document`: those that pairs (removed, kept) join.
  uint64_t cluster(uint64_t document) { return clusters_.find(document); }
  // Whether a cluster has others beside `document`.
  bool joined(uint64_t document) const { return joined_[document]; }
  uint64_t num_documents() const { return removed_.size(); }

 private:
  UnionFind clusters_;
  std::vector<bool> removed_, joined_;
  uint64_t next_ = 0;  // the first document whose pairs may still come
};

}  // namespace mify
