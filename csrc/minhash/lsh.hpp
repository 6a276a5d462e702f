// Locality-sensitive hashing: a signature is cut into bands of a few values; documents that agree on a whole band share
// a bucket. With b bands of r values a pair of Jaccard similarity J shares a bucket with probability 1 - (1 - J^r)^b.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "threads.hpp"

namespace mify {

struct SignatureTable {
  const uint8_t* values = nullptr;  // num_documents rows of num_perm values
  size_t num_documents = 0;
  size_t num_perm = 0;
  size_t value_bytes = 4;
  const uint64_t* num_shingles = nullptr;  // documents with 0 are in no bucket

  const uint8_t* row(size_t document) const { return values + document * num_perm * value_bytes; }
};

// The hash of one band of a signature.
uint64_t band_key(const uint8_t* band, size_t bytes);

// The buckets of two or more documents over all bands, each in ascending order: bucket i is
// members[offsets[i]] … members[offsets[i + 1] - 1].
struct Buckets {
  std::vector<uint64_t> offsets{0};
  std::vector<uint32_t> members;

  size_t size() const { return offsets.size() - 1; }
};

Buckets lsh_buckets(const SignatureTable& table, size_t num_bands, size_t rows_per_band, ThreadTeam& team);

// Disjoint sets whose representative is their smallest member.
class UnionFind {
 public:
  explicit UnionFind(size_t size);
  uint64_t find(uint64_t x);
  void unite(uint64_t x, uint64_t y);

 private:
  std::vector<uint64_t> parent_;
};

}  // namespace mify
