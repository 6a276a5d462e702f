#include "minhash/star.hpp"

#include <algorithm>
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
constexpr size_t kBlockDocuments = 512;
constexpr size_t kGrain = 2;
constexpr size_t kListGrain = 64;
// Where many copies of one document come together, comparing ahead with more would be for nothing.
constexpr size_t kAhead = 8;
constexpr uint64_t kSampledPairs = 1000;

// Members [begin, begin + size), the first `kept` of them overwritten by the documents kept so far. One record, since
// finding it is a cache miss.
struct Bucket {
  uint64_t begin;
  uint32_t size, kept;
};

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
  bool listed = false;          // it stays, and its buckets list it already
};

struct Worker {
  Worker(const ShingleConfig& shingles, size_t documents, unsigned thread)
      : thread(thread), builder(shingles), comparer(shingles), seen(documents, 0) {}

  const unsigned thread;  // of the team: who it belongs to
  ShingleSets builder;    // its table is used up in one call
  ShingleSets comparer;   // holds the document at hand
  uint32_t loaded = ~uint32_t{0};
  std::vector<uint32_t> seen;  // seen[k] == d + 1: the pair (d, k) was met
  uint64_t candidate_pairs = 0;
  uint64_t verified_pairs = 0;
};

// The shingle sets of documents, each computed when it is first asked for, by whichever worker asks.
class LazySets {
 public:
  LazySets(std::span<const std::string_view> texts, size_t count) : texts_(texts), sets_(count), locks_(kLocks) {}

  const std::vector<uint64_t>& get(uint32_t document, Worker& worker) {
    Set& set = sets_[document];
    if (!set.ready.load(std::memory_order_acquire)) {
      const std::lock_guard lock(locks_[document % kLocks]);
      if (!set.ready.load(std::memory_order_relaxed)) {
        set.values = worker.builder.unique(texts_[document]);
        set.thread = worker.thread;
        set.ready.store(true, std::memory_order_release);
      }
    }
    return set.values;
  }
  // Frees a set that no later document will be compared with.
  void drop(uint32_t document) { sets_[document].values = std::vector<uint64_t>(); }
  // Frees what is left, each thread what it allocated: freeing another's memory waits for the lock of its arena.
  void drop_all(ThreadTeam& team) {
    team.run([this](unsigned thread) {
      for (Set& set : sets_) {
        if (set.thread == thread) set.values = std::vector<uint64_t>();
      }
    });
  }

 private:
  // So many that two documents rarely share one: a thread that waits for a set sleeps longer than the set takes.
  static constexpr size_t kLocks = 4096;

  struct Set {
    std::vector<uint64_t> values;
    std::atomic<bool> ready{false};
    unsigned thread = 0;
  };
  std::span<const std::string_view> texts_;
  std::vector<Set> sets_;
  std::vector<std::mutex> locks_;
};

class Star {
 public:
  Star(std::span<const std::string_view> texts, const ShingleConfig& shingles, const SignatureTable& table,
       Buckets buckets, const StarConfig& config, ThreadTeam& team)
      : table_(table),
        members_(std::move(buckets.members)),
        config_(config),
        team_(team),
        sets_(texts, config.verify ? table.num_documents : 0) {
    // The last one is that of the serial part, which the team's first thread runs.
    for (unsigned i = 0; i <= team.size(); ++i) {
      workers_.push_back(std::make_unique<Worker>(shingles, table.num_documents, i % team.size()));
    }
    invert(std::move(buckets.offsets));
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
          found.ahead.clear();
          found.alone = found.listed = false;
          // With one thread nothing is won by it.
          if (team_.size() > 1) compare_ahead(*workers_[worker], first + static_cast<uint32_t>(i), first, found);
        }
      });
      // Nearly all of a block stay and share no bucket with an earlier document of it. They are the first of the block
      // in their buckets, so it does not matter in which order they are listed, and no two write to one bucket.
      team_.for_ranges(end - begin, kListGrain, [&](unsigned, size_t from, size_t to) {
        for (size_t i = from; i < to; ++i) {
          Findings& found = findings[i];
          found.listed = found.alone && found.matches.empty() && list_below_cap(first + static_cast<uint32_t>(i));
        }
      });
      for (uint32_t d = first; d < end; ++d) {
        Findings& found = findings[d - begin];
        if (found.listed) continue;
        if (!found.alone) compare_within_block(*workers_.back(), d, first, found);
        decide(d, found.matches, clusters, result);
      }
    }
    for (const auto& worker : workers_) {
      result.candidate_pairs += worker->candidate_pairs;
      result.verified_pairs += worker->verified_pairs;
    }
    measure_loss(result);
    sets_.drop_all(team_);
    result.cluster_ids.resize(n);
    for (size_t i = 0; i < n; ++i) result.cluster_ids[i] = static_cast<int64_t>(clusters.find(i));
    return result;
  }

 private:
  // The buckets, and those of each document.
  void invert(std::vector<uint64_t> offsets) {
    buckets_.reserve(offsets.size() - 1);
    bucket_offsets_.assign(table_.num_documents + 1, 0);
    for (const uint32_t member : members_) ++bucket_offsets_[member + 1];
    for (size_t i = 1; i < bucket_offsets_.size(); ++i) bucket_offsets_[i] += bucket_offsets_[i - 1];
    bucket_ids_.resize(members_.size());
    std::vector<uint64_t> fill(bucket_offsets_.begin(), bucket_offsets_.end() - 1);
    for (size_t bucket = 0; bucket + 1 < offsets.size(); ++bucket) {
      const uint64_t begin = offsets[bucket], end = offsets[bucket + 1];
      buckets_.push_back({begin, static_cast<uint32_t>(end - begin), 0});
      for (uint64_t at = begin; at < end; ++at) bucket_ids_[fill[members_[at]]++] = static_cast<uint32_t>(bucket);
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
      worker.comparer.load(sets_.get(document, worker));
      worker.loaded = document;
    }
    const double jaccard = worker.comparer.jaccard(sets_.get(other, worker), config_.threshold);
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
    for (const uint32_t id : buckets_of(document)) {
      const Bucket& bucket = buckets_[id];
      const uint32_t* const kept = members_.data() + bucket.begin;
      for (uint32_t i = 0; i < bucket.kept; ++i) {
        if (is_new(worker, document, kept[i])) count(worker, look_at(worker, document, kept[i]), found);
      }
    }
  }

  // Nothing is counted yet. Where copies abound, nearly all of a block match a document kept before it, and comparing
  // them with each other would be for nothing.
  void compare_ahead(Worker& worker, uint32_t document, uint32_t block_begin, Findings& found) {
    const size_t most = found.matches.empty() ? kAhead : 0;
    for (const uint32_t id : buckets_of(document)) {
      const Bucket& bucket = buckets_[id];
      // Behind the documents kept so far the bucket's members stand as they did, in ascending order.
      const uint32_t* const members = members_.data() + bucket.begin;
      const uint32_t* at = std::lower_bound(members + bucket.kept, members + bucket.size, block_begin);
      for (; *at < document; ++at) {
        if (!is_new(worker, document, *at)) continue;
        if (found.ahead.size() == most) return;
        found.ahead.push_back(look_at(worker, document, *at));
      }
    }
    found.alone = found.ahead.empty();
  }

  // Counts, of the documents of its block, those that were kept and that a bucket lists.
  void compare_within_block(Worker& worker, uint32_t document, uint32_t block_begin, Findings& found) {
    for (const uint32_t id : buckets_of(document)) {
      const Bucket& bucket = buckets_[id];
      const uint32_t* const kept = members_.data() + bucket.begin;
      for (uint32_t i = bucket.kept; i > 0 && kept[i - 1] >= block_begin; --i) {
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
    if (list_below_cap(document)) return;
    for (const uint32_t id : buckets_of(document)) {
      if (buckets_[id].kept < config_.bucket_cap) {
        list(id, document);
      } else {
        unlisted_[id].push_back(document);
      }
    }
  }

  void list(uint32_t bucket, uint32_t document) {
    members_[buckets_[bucket].begin + buckets_[bucket].kept++] = document;
  }

  // Adds a document that stays to its buckets; does nothing and returns false where one of them is full.
  bool list_below_cap(uint32_t document) {
    const std::span<const uint32_t> ids = buckets_of(document);
    const auto full = [this](uint32_t id) { return buckets_[id].kept >= config_.bucket_cap; };
    if (std::any_of(ids.begin(), ids.end(), full)) return false;
    for (const uint32_t id : ids) list(id, document);
    return true;
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
  std::vector<uint32_t> members_;
  const StarConfig config_;
  ThreadTeam& team_;
  LazySets sets_;
  std::vector<Bucket> buckets_;
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
