// Which documents go: the greedy star over the candidate pairs of LSH, with exact Jaccard similarities.
//
// Documents are taken in their order (the caller's stable one). A document is removed if it has Jaccard similarity >=
// threshold with an earlier document that was kept and shares a bucket with it; the pair of the highest similarity (of
// several, the earliest kept document) is its evidence. So a document never goes by a chain of similar ones, and only
// pairs with a kept document need to be looked at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "minhash/lsh.hpp"
#include "minhash/shingles.hpp"

namespace mify {

struct StarConfig {
  double threshold = 0.7;
  // Exact similarities of the shingle sets (as sets of 64-bit hashes); otherwise the share of equal signature values.
  bool verify = true;
  // Pairs with fewer equal signature values are not worth an exact look.
  size_t min_matches = 0;
  // A bucket lists at most so many kept documents; later ones are compared with these only, and what that may lose is
  // measured on a sample.
  size_t bucket_cap = 1024;
  uint64_t seed = 1;  // of that sample
};

struct Removal {
  uint32_t removed, kept;
  double jaccard;
};

struct StarResult {
  std::vector<Removal> removals;     // by removed document, ascending
  std::vector<int64_t> cluster_ids;  // smallest document joined by pairs (removed, kept) at or above the threshold
  uint64_t num_buckets = 0;
  uint64_t candidate_pairs = 0;  // distinct pairs (document, earlier kept document in a bucket of it)
  uint64_t verified_pairs = 0;   // of these, those whose similarity was computed
  uint64_t capped_buckets = 0;
  uint64_t skipped_pairs = 0;  // pairs of kept documents that a capped bucket did not compare
  uint64_t sampled_pairs = 0;  // of these, drawn and computed
  uint64_t sampled_lost = 0;   // of those, at or above the threshold: near-duplicates that were kept
};

// `texts` are read again, by `shingles`, for the sets of the documents that need them.
StarResult greedy_star(std::span<const std::string_view> texts, const ShingleConfig& shingles,
                       const SignatureTable& table, Buckets buckets, const StarConfig& config, ThreadTeam& team);

// The exact similarity of two texts, and 0 where both have no shingle.
double exact_jaccard(std::string_view x, std::string_view y, const ShingleConfig& shingles);

}  // namespace mify
