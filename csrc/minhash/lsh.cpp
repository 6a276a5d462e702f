#include "minhash/lsh.hpp"

#include <algorithm>
#include <bit>
#include <numeric>

#include "text/word_hash.hpp"

namespace mify {
namespace {

// Documents in one hash table: it fits the second-level cache, whatever the size of the corpus.
constexpr size_t kPartition = 8192;

struct Entry {
  uint64_t key;
  uint32_t document;
};

struct Slot {
  uint64_t key;
  uint32_t count;
  uint32_t fill;  // next place in members, once the bucket has one
};

class BandBucketer {
 public:
  void run(const SignatureTable& table, size_t band, size_t rows_per_band, Buckets& out) {
    const size_t band_bytes = rows_per_band * table.value_bytes;
    entries_.clear();
    for (size_t i = 0; i < table.num_documents; ++i) {
      if (table.num_shingles != nullptr && table.num_shingles[i] == 0) continue;
      entries_.push_back({band_key(table.row(i) + band * band_bytes, band_bytes), static_cast<uint32_t>(i)});
    }
    const size_t partitions = std::bit_ceil((entries_.size() + kPartition - 1) / kPartition);
    if (partitions <= 1) return group(entries_.data(), entries_.size(), out);
    const int shift = 64 - std::countr_zero(partitions);
    std::vector<size_t> starts(partitions + 1, 0);
    for (const Entry& entry : entries_) ++starts[(entry.key >> shift) + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    partitioned_.resize(entries_.size());
    std::vector<size_t> fill(starts.begin(), starts.end() - 1);
    for (const Entry& entry : entries_) partitioned_[fill[entry.key >> shift]++] = entry;
    for (size_t p = 0; p < partitions; ++p) group(partitioned_.data() + starts[p], starts[p + 1] - starts[p], out);
  }

 private:
  // Groups equal keys by an open hash table; buckets come in the order of their first member.
  void group(const Entry* entries, size_t count, Buckets& out) {
    if (count < 2) return;
    const size_t mask = std::bit_ceil(2 * count) - 1;
    slots_.assign(mask + 1, Slot{0, 0, 0});
    slot_of_.resize(count);
    for (size_t i = 0; i < count; ++i) {
      size_t slot = entries[i].key & mask;
      while (slots_[slot].count != 0 && slots_[slot].key != entries[i].key) slot = (slot + 1) & mask;
      slots_[slot].key = entries[i].key;
      ++slots_[slot].count;
      slot_of_[i] = static_cast<uint32_t>(slot);
    }
    const size_t base = out.members.size();
    size_t used = 0;
    for (size_t i = 0; i < count; ++i) {
      Slot& slot = slots_[slot_of_[i]];
      if (slot.count < 2) continue;
      if (slot.fill == 0) {
        slot.fill = static_cast<uint32_t>(used) + 1;
        used += slot.count;
        out.offsets.push_back(base + used);
        out.members.resize(base + used);
      }
      out.members[base + slot.fill - 1] = entries[i].document;
      ++slot.fill;
    }
  }

  std::vector<Entry> entries_, partitioned_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> slot_of_;
};

}  // namespace

uint64_t band_key(const uint8_t* band, size_t bytes) {
  uint64_t h = kS2;
  size_t at = 0;
  for (; at + 8 <= bytes; at += 8) h = mum(h ^ load64(band + at), kS1);
  if (at < bytes) h = mum(h ^ load32(band + at), kS3);
  return mum(h ^ kS0, kS2);
}

Buckets lsh_buckets(const SignatureTable& table, size_t num_bands, size_t rows_per_band, ThreadTeam& team) {
  std::vector<Buckets> bands(num_bands);
  std::vector<BandBucketer> bucketers(team.size());
  team.for_ranges(num_bands, 1, [&](unsigned worker, size_t begin, size_t end) {
    for (size_t band = begin; band < end; ++band) bucketers[worker].run(table, band, rows_per_band, bands[band]);
  });
  Buckets all;
  size_t buckets = 0, members = 0;
  for (const Buckets& band : bands) buckets += band.size(), members += band.members.size();
  all.offsets.reserve(buckets + 1);
  all.members.reserve(members);
  for (Buckets& band : bands) {
    const uint64_t base = all.members.size();
    for (size_t i = 1; i < band.offsets.size(); ++i) all.offsets.push_back(base + band.offsets[i]);
    all.members.insert(all.members.end(), band.members.begin(), band.members.end());
    band = Buckets();
  }
  return all;
}

UnionFind::UnionFind(size_t size) : parent_(size) {
  std::iota(parent_.begin(), parent_.end(), uint64_t{0});
}

uint64_t UnionFind::find(uint64_t x) {
  while (parent_[x] != x) {
    parent_[x] = parent_[parent_[x]];
    x = parent_[x];
  }
  return x;
}

void UnionFind::unite(uint64_t x, uint64_t y) {
  x = find(x);
  y = find(y);
  if (x != y) parent_[std::max(x, y)] = std::min(x, y);
}

}  // namespace mify
