#include "minhash/runs.hpp"

#include <algorithm>
#include <tuple>

namespace mify {
namespace {

bool entry_less(const RunEntry& x, const RunEntry& y) {
  return std::tie(x.key, x.document) < std::tie(y.key, y.document);
}

}  // namespace

size_t num_bucketed(const SignatureTable& table) {
  if (table.num_shingles == nullptr) return table.num_documents;
  return table.num_documents -
         static_cast<size_t>(std::count(table.num_shingles, table.num_shingles + table.num_documents, uint64_t{0}));
}

void band_runs(const SignatureTable& table, std::span<const uint64_t> documents, size_t num_bands, size_t rows_per_band,
               ThreadTeam& team, RunEntry* out) {
  const size_t count = num_bucketed(table), band_bytes = rows_per_band * table.value_bytes;
  team.for_ranges(num_bands, 1, [&](unsigned, size_t begin, size_t end) {
    for (size_t band = begin; band < end; ++band) {
      RunEntry* const run = out + band * count;
      RunEntry* at = run;
      for (size_t i = 0; i < table.num_documents; ++i) {
        if (table.num_shingles != nullptr && table.num_shingles[i] == 0) continue;
        *at++ = {band_key(table.row(i) + band * band_bytes, band_bytes), documents[i]};
      }
      std::sort(run, at, entry_less);
    }
  });
}

BucketPairs::BucketPairs(std::span<RunEntry> entries, size_t bucket_cap) : entries_(entries), cap_(bucket_cap) {
  std::sort(entries.begin(), entries.end(), entry_less);
}

std::vector<CandidatePair> BucketPairs::next(size_t limit) {
  std::vector<CandidatePair> pairs;
  while (pairs.size() < limit) {
    if (later_ == end_) {
      begin_ = end_;
      if (begin_ == entries_.size()) break;
      while (end_ < entries_.size() && entries_[end_].key == entries_[begin_].key) ++end_;
      later_ = begin_ + 1;
      const size_t documents = end_ - begin_;
      num_buckets_ += documents > 1 ? 1 : 0;
      if (documents > cap_) capped_.push_back({entries_[begin_].key, documents});
      continue;
    }
    const size_t stop = std::min(later_, begin_ + cap_);
    for (size_t earlier = begin_; earlier < stop; ++earlier) {
      pairs.push_back({entries_[later_].document, entries_[earlier].document});
    }
    ++later_;
  }
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
  return pairs;
}

}  // namespace mify
