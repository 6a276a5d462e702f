// LSH over more documents than one machine holds: every part of the corpus writes, for each band, its documents sorted
// by the hash of that band; buckets are found where the sorted runs of all parts are brought together.
//
// Documents are named by 64-bit codes whose order is the caller's stable order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "minhash/lsh.hpp"
#include "threads.hpp"

namespace mify {

// A document in a run: 16 bytes, in memory and on disk.
struct RunEntry {
  uint64_t key;       // of the band
  uint64_t document;  // its code
};
static_assert(sizeof(RunEntry) == 16);

struct CandidatePair {
  uint64_t later, earlier;  // codes, later > earlier

  friend auto operator<=>(const CandidatePair&, const CandidatePair&) = default;
};
static_assert(sizeof(CandidatePair) == 16);

// Documents of a table that stand in buckets: those with a shingle.
size_t num_bucketed(const SignatureTable& table);

// Writes num_bands runs of num_bucketed(table) entries each, sorted by (key, document). documents[i] is the code of row
// i.
void band_runs(const SignatureTable& table, std::span<const uint64_t> documents, size_t num_bands, size_t rows_per_band,
               ThreadTeam& team, RunEntry* out);

// Pairs of the documents that share a bucket, some at a time.
//
// A bucket of more than `bucket_cap` documents pairs each of them with its first `bucket_cap` only; what that left out
// is counted.
class BucketPairs {
 public:
  // `entries` of one band, or of a range of its keys, in any order; they are sorted in place and must outlive this.
  BucketPairs(std::span<RunEntry> entries, size_t bucket_cap);

  // The next pairs, sorted, each once: all pairs of some whole rows, about `limit` of them and at least one row's; none
  // at the end.
  std::vector<CandidatePair> next(size_t limit);

  struct Capped {
    uint64_t key, documents;
  };
  uint64_t num_buckets() const { return num_buckets_; }          // of two documents or more, so far
  const std::vector<Capped>& capped() const { return capped_; }  // buckets over the cap, so far

 private:
  std::span<const RunEntry> entries_;
  size_t cap_;
  size_t begin_ = 0, end_ = 0;  // the bucket at hand
  size_t later_ = 0;            // the place in it of the next document to pair
  uint64_t num_buckets_ = 0;
  std::vector<Capped> capped_;
};

}  // namespace mify
