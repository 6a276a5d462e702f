// Candidate pairs of two parts of a corpus, compared: first by their signatures, then by their shingle sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "minhash/lsh.hpp"
#include "minhash/shingles.hpp"
#include "threads.hpp"

namespace mify {

struct Similarity {
  double threshold = 0.7;
  // Exact similarities of the shingle sets; otherwise the share of equal signature values.
  bool verify = true;
  // Pairs with fewer equal signature values are not worth an exact look.
  size_t min_matches = 0;
};

// One side of the pairs: the texts and signatures of a part, row by row.
struct Part {
  std::span<const std::string_view> texts;
  SignatureTable table;
};

// Writes for each pair (later[i] of `x`, earlier[i] of `y`, both rows) its similarity, or -1 where that is below the
// threshold, and returns how many were computed exactly. Pairs of the same later row should stand together: its set is
// then built once.
uint64_t similarities(const Part& x, const Part& y, std::span<const uint64_t> later, std::span<const uint64_t> earlier,
                      const ShingleConfig& shingles, const Similarity& similarity, ThreadTeam& team, double* out);

// Equal values of two signatures.
size_t equal_values(const SignatureTable& x, size_t row_of_x, const SignatureTable& y, size_t row_of_y);

}  // namespace mify
