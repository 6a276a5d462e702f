#include "minhash/star.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "minhash/shingle_set.hpp"
#include "minhash/verify.hpp"
#include "text/mix.hpp"

namespace mify {
namespace {

// Documents are decided in blocks: in parallel each is compared with those kept before the block, and ahead of time
// with a few of the block itself; then they are decided one after another.
constexpr size_t kBlockDocuments = 1024;
constexpr size_t kGrain = 4;
// Where many copies of one document come together, comparing ahead with more would be for nothing.
constexpr size_t kAhead = 8;
constexpr uint64_t kSampledPairs = 1000;

struct Match {
  uint32_t kept;
  double jaccard;
};

// A pair looked at: its similarity, or -1 where that is below the threshold or surely so by the signatures.
struct Compared {
  uint32_t other;
  double jaccard;
  bool exactly;
};

struct Findings {
  std::vector<Match> matches;
  std::vector<Compared> ahead;  // with earlier documents of the block, which may yet go
  bool alone = false;           // no earlier document of the block shares a bucket with it
};

// The shingle sets of documents, each computed when it is first asked for, by whichever worker asks.
class LazySets {
 public:
  LazySets(std::span<const std::string_view> texts, size_t count) : texts_(texts), sets_(count) {}

  const std::vector<uint64_t>& get(uint32_t document, ShingleSets& builder) {
    Set& set = sets_[document];
    if (!set.ready.load(std::memory_order_acquire)) {
      const std::lock_guard lock(locks_[document % locks_.size()]);
      if (!set.ready.load(std::memory_order_relaxed)) {
        set.values = builder.unique(texts_[document]);
        set.ready.store(true, std::memory_order_release);
      }
    }
    return set.values;
  }
  // Frees a set that no later document will be compared with.
  void drop(uint32_t document) { sets_[document].values = std::vector<uint64_t>(); }

 private:
  struct Set {
    std::vector<uint64_t> values;
    std::atomic<bool> ready{false};
  };
  std::span<const std::string_view> texts_;
  std::vector<Set> sets_;
  std::array<std::mutex, 64> locks_;
};

struct Worker {
  explicit Worker(const ShingleConfig& shingles, size_t documents)
      : builder(shingles), comparer(shingles), seen(documents, 0) {}

  ShingleSets builder;   // its table is used up in one call
  ShingleSets comparer;  // holds the document at hand
  uint32_t loaded = ~uint32_t{0};
  std::vector<uint32_t> seen;  // seen[k] == d + 1: the pair (d, k) was met
  uint64_t candidate_pairs = 0;
  uint64_t verified_pairs = 0;
};

class Star {
 public:
  Star(std::span<const std::string_view> texts, const ShingleConfig& shingles, const SignatureTable& table,
       Buckets buckets, const StarConfig& config, ThreadTeam& team)
      : table_(table),
        buckets_(std::move(buckets)),
        config_(config),
        team_(team),
        sets_(texts, config.verify ? table.num_documents : 0),
        kept_count_(buckets_.size(), 0) {
    // The last one is that of the serial part.
    for (unsigned i = 0; i <= team.size(); ++i) {
      workers_.push_back(std::make_unique<Worker>(shingles, table.num_documents));
    }
    invert();
  }

  StarResult run() {
    const size_t n = table_.num_documents;
    UnionFind clusters(n);
    StarResult result;
    result.num_buckets = buckets_.size();
    std::vector<Findings> findings(std::min(n, kBlockDocuments));
    for (size_t begin = 0; begin < n; begin += kBlockDocuments) {
      const size_t end = std::min(n, begin + kBlockDocuments);
      const uint32_t first = static_cast<uint32_t>(begin);
      team_.for_ranges(end - begin, kGrain, [&](unsigned worker, size_t from, size_t to) {
        for (size_t i = from; i < to; ++i) {
          Findings& found = findings[i];
          found.matches.clear();
          compare_with_earlier(*workers_[worker], first + static_cast<uint32_t>(i), found);
          // Where copies abound, nearly all of a block match a document kept before it, and comparing them with each
          // other would be for nothing; with one thread nothing is won by it.
          found.ahead.clear();
          found.alone = false;
          if (team_.size() > 1 && found.matches.empty()) {
            compare_ahead(*workers_[worker], first + static_cast<uint32_t>(i), first, found);
          }
        }
      });
      for (uint32_t d = first; d < end; ++d) {
        Findings& found = findings[d - begin];
        if (!found.alone) compare_within_block(*workers_.back(), d, first, found);
        decide(d, found.matches, clusters, result);
      }
    }
    for (const auto& worker : workers_) {
      result.candidate_pairs += worker->candidate_pairs;
      result.verified_pairs += worker->verified_pairs;
    }
    measure_loss(result);
    if (config_.verify) {
      // Thousands of sets are freed faster by all.
      team_.for_ranges(n, 256, [&](unsigned, size_t from, size_t to) {
        for (size_t d = from; d < to; ++d) sets_.drop(static_cast<uint32_t>(d));
      });
    }
    result.cluster_ids.resize(n);
    for (size_t i = 0; i < n; ++i) result.cluster_ids[i] = static_cast<int64_t>(clusters.find(i));
    return result;
  }

 private:
  // The buckets of each document; from then on a bucket's members are the documents kept so far.
  void invert() {
    bucket_offsets_.assign(table_.num_documents + 1, 0);
    for (const uint32_t member : buckets_.members) ++bucket_offsets_[member + 1];
    for (size_t i = 1; i < bucket_offsets_.size(); ++i) bucket_offsets_[i] += bucket_offsets_[i - 1];
    bucket_ids_.resize(buckets_.members.size());
    std::vector<uint64_t> fill(bucket_offsets_.begin(), bucket_offsets_.end() - 1);
    for (size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
      for (uint64_t at = buckets_.offsets[bucket]; at < buckets_.offsets[bucket + 1]; ++at) {
        bucket_ids_[fill[buckets_.members[at]]++] = static_cast<uint32_t>(bucket);
      }
    }
  }

  std::span<const uint32_t> buckets_of(uint32_t document) const {
    return std::span(bucket_ids_)
        .subspan(bucket_offsets_[document], bucket_offsets_[document + 1] - bucket_offsets_[document]);
  }

  Compared look_at(Worker& worker, uint32_t document, uint32_t other) {
    const size_t equal = equal_values(table_, document, table_, other);
    if (!config_.verify) {
      const double estimate = static_cast<double>(equal) / static_cast<double>(table_.num_perm);
      return {other, estimate < config_.threshold ? -1 : estimate, false};
    }
    if (equal < config_.min_matches) return {other, -1, false};
    if (worker.loaded != document) {
      worker.comparer.load(sets_.get(document, worker.builder));
      worker.loaded = document;
    }
    const double jaccard = worker.comparer.jaccard(sets_.get(other, worker.builder), config_.threshold);
    return {other, jaccard < config_.threshold ? -1 : jaccard, true};
  }

  static bool is_new(Worker& worker, uint32_t document, uint32_t other) {
    return std::exchange(worker.seen[other], document + 1) != document + 1;
  }

  static void count(Worker& worker, const Compared& pair, Findings& found) {
    ++worker.candidate_pairs;
    worker.verified_pairs += pair.exactly ? 1 : 0;
    if (pair.jaccard >= 0) found.matches.push_back({pair.other, pair.jaccard});
  }

  void compare_with_earlier(Worker& worker, uint32_t document, Findings& found) {
    for (const uint32_t bucket : buckets_of(document)) {
      const uint32_t* const kept = buckets_.members.data() + buckets_.offsets[bucket];
      for (uint32_t i = 0; i < kept_count_[bucket]; ++i) {
        if (is_new(worker, document, kept[i])) count(worker, look_at(worker, document, kept[i]), found);
      }
    }
  }

  // Nothing is counted yet.
  void compare_ahead(Worker& worker, uint32_t document, uint32_t block_begin, Findings& found) {
    for (const uint32_t bucket : buckets_of(document)) {
      // Behind the documents kept so far the bucket's members stand as they did, in ascending order.
      const auto end = buckets_.members.begin() + static_cast<ptrdiff_t>(buckets_.offsets[bucket + 1]);
      auto at = buckets_.members.begin() + static_cast<ptrdiff_t>(buckets_.offsets[bucket] + kept_count_[bucket]);
      for (at = std::lower_bound(at, end, block_begin); *at < document; ++at) {
        if (!is_new(worker, document, *at)) continue;
        if (found.ahead.size() == kAhead) return;
        found.ahead.push_back(look_at(worker, document, *at));
      }
    }
    found.alone = found.ahead.empty();
  }

  // Counts, of the documents of its block, those that were kept and that a bucket lists.
  void compare_within_block(Worker& worker, uint32_t document, uint32_t block_begin, Findings& found) {
    for (const uint32_t bucket : buckets_of(document)) {
      const uint32_t* const kept = buckets_.members.data() + buckets_.offsets[bucket];
      for (uint32_t i = kept_count_[bucket]; i > 0 && kept[i - 1] >= block_begin; --i) {
        if (!is_new(worker, document, kept[i - 1])) continue;
        const auto known = std::find_if(found.ahead.begin(), found.ahead.end(),
                                        [other = kept[i - 1]](const Compared& pair) { return pair.other == other; });
        count(worker, known != found.ahead.end() ? *known : look_at(worker, document, kept[i - 1]), found);
      }
    }
  }

  void decide(uint32_t document, const std::vector<Match>& found, UnionFind& clusters, StarResult& result) {
    if (!found.empty()) {
      Match best = found.front();
      for (const Match& match : found) {
        clusters.unite(document, match.kept);
        if (match.jaccard > best.jaccard || (match.jaccard == best.jaccard && match.kept < best.kept)) best = match;
      }
      result.removals.push_back({document, best.kept, best.jaccard});
      if (config_.verify) sets_.drop(document);
      return;
    }
    for (const uint32_t bucket : buckets_of(document)) {
      if (kept_count_[bucket] < config_.bucket_cap) {
        buckets_.members[buckets_.offsets[bucket] + kept_count_[bucket]++] = document;
      } else {
        unlisted_[bucket].push_back(document);
      }
    }
  }

  // The documents that a capped bucket did not list were all kept, so a pair of them at or above the threshold is a
  // near-duplicate missed (had another bucket compared it, one of the two would be gone).
  void measure_loss(StarResult& result) {
    std::vector<uint64_t> ends;
    std::vector<const std::vector<uint32_t>*> lists;
    for (const auto& [bucket, documents] : unlisted_) {
      const uint64_t m = documents.size();
      result.skipped_pairs += m * (m - 1) / 2;
      ends.push_back(result.skipped_pairs);
      lists.push_back(&documents);
    }
    result.capped_buckets = unlisted_.size();
    if (result.skipped_pairs == 0) return;
    const uint64_t draws = std::min(kSampledPairs, result.skipped_pairs);
    Worker& worker = *workers_.back();
    for (uint64_t draw = 0; draw < draws; ++draw) {
      // Every pair where there are few; otherwise drawn by a counter, with repetition.
      const uint64_t random = fmix64(config_.seed * 0x9E3779B97F4A7C15ull + draw);
      const uint64_t pair = draws == result.skipped_pairs
                                ? draw
                                : static_cast<uint64_t>(static_cast<Wide>(random) * result.skipped_pairs >> 64);
      const size_t list = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), pair) - ends.begin());
      uint64_t rest = pair - (list == 0 ? 0 : ends[list - 1]);
      uint32_t later = 1;  // pair (earlier, later) with index later * (later - 1) / 2 + earlier
      while (rest >= later) rest -= later++;
      const std::vector<uint32_t>& documents = *lists[list];
      if (look_at(worker, documents[later], documents[rest]).jaccard >= 0) ++result.sampled_lost;
    }
    result.sampled_pairs = draws;
  }

  const SignatureTable table_;
  Buckets buckets_;
  const StarConfig config_;
  ThreadTeam& team_;
  LazySets sets_;
  std::vector<uint32_t> kept_count_;
  std::vector<uint64_t> bucket_offsets_;
  std::vector<uint32_t> bucket_ids_;
  std::map<uint32_t, std::vector<uint32_t>> unlisted_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace

StarResult greedy_star(std::span<const std::string_view> texts, const ShingleConfig& shingles,
                       const SignatureTable& table, Buckets buckets, const StarConfig& config, ThreadTeam& team) {
  return Star(texts, shingles, table, std::move(buckets), config, team).run();
}

double exact_jaccard(std::string_view x, std::string_view y, const ShingleConfig& shingles) {
  ShingleSets sets(shingles);
  const std::vector<uint64_t> first = sets.unique(x), second = sets.unique(y);
  sets.load(first);
  return sets.jaccard(second, 0);
}

}  // namespace mify
