// Random inputs through every C++ entry point of csrc/minhash and csrc/text, to be built with sanitizers.
//
//   fuzz_minhash SEED ITERATIONS
//
// Inputs lie in heap blocks of exactly their size, so that a read past an end is seen. Ends with a digest of all
// results after ITERATIONS inputs: it must be the same on every CPU path and for any number of threads.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "minhash/digests.hpp"
#include "minhash/lsh.hpp"
#include "minhash/runs.hpp"
#include "minhash/shingle_set.hpp"
#include "minhash/signature.hpp"
#include "minhash/star.hpp"
#include "minhash/star_pass.hpp"
#include "minhash/verify.hpp"
#include "text/mix.hpp"
#include "text/ngram_index.hpp"
#include "text/words.hpp"

namespace {

using namespace mify;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() { return fmix64(state_ += 0x9E3779B97F4A7C15ull); }
  size_t below(size_t bound) { return static_cast<size_t>(next() % bound); }

 private:
  uint64_t state_;
};

// A text in a heap block of exactly its size.
struct Text {
  explicit Text(const std::string& from) : bytes(new char[from.size()]), size(from.size()) {
    std::memcpy(bytes.get(), from.data(), size);
  }
  std::string_view view() const { return {bytes.get(), size}; }

  std::unique_ptr<char[]> bytes;
  size_t size;
};

uint64_t digest = 0;

void take(uint64_t value) {
  digest = mum(digest ^ value, 0x9E3779B97F4A7C15ull) + 1;
}

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::abort();
}

std::string random_text(Random& random) {
  static const char* const pieces[] = {
      "a",
      "Z",
      "_",
      "0",
      " ",
      "\n",
      "word",
      "Return",
      "x1 ",
      "é",
      "Ⱥ",
      "中",
      "\xF0\x9D\x90\x80",
      "İ",
      "ß ",
      "\x80",
      "\xC3",
      "\xE4\xB8",
      "\xF0\x9F",
      "\xFF",
      "\xED\xA0\x80",
      "\xF4\x90\x80\x80",
      "\xC0\xAF",
      "-",
      "\0",
  };
  constexpr size_t lengths[] = {0, 1, 3, 15, 16, 17, 62, 63, 64, 65, 130, 700, 4095, 4096, 4097, 9000};
  const size_t length = lengths[random.below(std::size(lengths))];
  const size_t kinds = 1 + random.below(std::size(pieces));
  std::string text;
  while (text.size() < length) {
    switch (random.below(20)) {
      case 0:
        text.append(random.below(300), static_cast<char>(random.next()));
        break;
      case 1:
        text.push_back(static_cast<char>(random.next()));
        break;
      default: {
        const char* const piece = pieces[random.below(kinds)];
        text.append(piece, std::max<size_t>(1, std::strlen(piece)));
      }
    }
  }
  if (!text.empty() && random.below(2) == 0) text.resize(length);
  return text;
}

std::string mutant(const std::string& text, Random& random) {
  std::string changed = text;
  for (size_t i = random.below(4); i > 0 && !changed.empty(); --i) {
    changed[random.below(changed.size())] = static_cast<char>(random.next());
  }
  return changed;
}

SignatureConfig random_config(Random& random) {
  SignatureConfig config;
  config.shingles.ngram = static_cast<uint32_t>(1 + random.below(random.below(8) == 0 ? kMaxNgram : 6));
  config.shingles.lowercase = random.below(2) == 0;
  config.shingles.hash = static_cast<ShingleHash>(random.below(3));
  config.scheme = static_cast<Scheme>(random.below(4));
  config.num_perm = static_cast<uint32_t>(1 + random.below(140));
  config.seed = random.next();
  if (config.scheme != Scheme::kOnePermutation) {
    for (uint32_t i = 0; i < config.num_perm; ++i) {
      config.a.push_back(random.next() | 1);
      config.b.push_back(random.next());
    }
  }
  return config;
}

void fuzz_words(const Text& text) {
  size_t last = 0;
  for_each_word(text.view(), [&](size_t begin, size_t end) {
    require(begin < end && end <= text.size && (last == 0 || begin > last), "words ascend, apart, inside the text");
    last = end;
    take(begin);
    take(end);
  });
}

void fuzz_shingles(const Text& text, Random& random) {
  const SignatureConfig config = random_config(random);
  Shingler shingler(config.shingles);
  shingler.start(text.view());
  uint64_t count = 0;
  for (auto block = shingler.next(); !block.empty(); block = shingler.next()) {
    for (const uint64_t hash : block) take(hash);
    count += block.size();
  }
  const uint64_t n = config.shingles.ngram, words = shingler.num_words();
  require(count == (words == 0 ? 0 : words < n ? 1 : words - n + 1), "a shingle for every window");
  ShingleSets sets(config.shingles);
  require(sets.unique(text.view()).size() <= count, "a set is no larger than its list");
}

void fuzz_digests(const Text& text) {
  const auto* const data = reinterpret_cast<const uint8_t*>(text.view().data());
  take(sha1_prefix64(data, text.size));
  take(xxh32(data, text.size));
}

// The way over runs and pairs ends where the one in memory does, however the documents are dealt out to two parts.
void fuzz_runs(std::span<const std::string_view> views, const SignatureConfig& config, const SignatureTable& table,
               size_t bands, size_t rows, StarConfig star, ThreadTeam& team, Random& random) {
  const size_t cut = random.below(views.size() + 1);
  const auto part_of = [&](size_t begin, size_t end) {
    Part part{views.subspan(begin, end - begin), table};
    part.table.values = table.row(begin);
    part.table.num_shingles = table.num_shingles + begin;
    part.table.num_documents = end - begin;
    return part;
  };
  const Part parts[2] = {part_of(0, cut), part_of(cut, views.size())};
  std::vector<std::vector<RunEntry>> runs;
  for (size_t p = 0; p < 2; ++p) {
    std::vector<uint64_t> codes;
    for (size_t i = 0; i < parts[p].texts.size(); ++i) codes.push_back((p == 0 ? 0 : cut) + i);
    runs.emplace_back(bands * num_bucketed(parts[p].table));
    band_runs(parts[p].table, codes, bands, rows, team, runs[p].data());
  }
  uint64_t buckets = 0, skipped = 0;
  std::vector<CandidatePair> pairs;
  const size_t cap = random.below(2) == 0 ? views.size() : 1 + random.below(4);
  for (size_t band = 0; band < bands; ++band) {
    std::vector<RunEntry> entries;
    for (const std::vector<RunEntry>& run : runs) {
      const auto from = run.begin() + static_cast<ptrdiff_t>(band * (run.size() / bands));
      entries.insert(entries.end(), from, from + static_cast<ptrdiff_t>(run.size() / bands));
    }
    BucketPairs finder(entries, cap);
    for (auto found = finder.next(1 + random.below(8)); !found.empty(); found = finder.next(1 + random.below(8))) {
      require(std::is_sorted(found.begin(), found.end()), "pairs are sorted");
      pairs.insert(pairs.end(), found.begin(), found.end());
    }
    buckets += finder.num_buckets();
    for (const BucketPairs::Capped& capped : finder.capped()) {
      require(capped.documents > cap, "a capped bucket is over the cap");
      skipped += (capped.documents - cap) * (capped.documents - cap - 1) / 2;
    }
  }
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
  StarPass pass(views.size());
  std::vector<PassRemoval> removals;
  for (size_t begin = 0; begin < pairs.size();) {
    std::vector<VerifiedPair> verified;
    const uint64_t later = pairs[begin].later;
    for (; begin < pairs.size() && pairs[begin].later == later; ++begin) {
      const uint64_t earlier = pairs[begin].earlier;
      require(earlier < later && later < views.size(), "a pair is of an earlier and a later document");
      const uint64_t x = later < cut ? later : later - cut, y = earlier < cut ? earlier : earlier - cut;
      double jaccard = 0;
      similarities(parts[later < cut ? 0 : 1], parts[earlier < cut ? 0 : 1], {&x, 1}, {&y, 1}, config.shingles,
                   {star.threshold, star.verify, star.min_matches}, team, &jaccard);
      if (jaccard >= 0) verified.push_back({later, earlier, jaccard});
    }
    for (const PassRemoval& removal : pass.add(verified)) removals.push_back(removal);
  }
  take(skipped);
  if (cap < views.size()) return;
  star.bucket_cap = views.size();
  const StarResult expected =
      greedy_star(views, config.shingles, table, lsh_buckets(table, bands, rows, team), star, team);
  require(buckets == expected.num_buckets, "the same buckets");
  require(removals.size() == expected.removals.size(), "as many removals");
  for (size_t i = 0; i < removals.size(); ++i) {
    const Removal& other = expected.removals[i];
    require(
        removals[i].removed == other.removed && removals[i].kept == other.kept && removals[i].jaccard == other.jaccard,
        "the same removals");
  }
  for (size_t i = 0; i < views.size(); ++i) {
    require(pass.cluster(i) == static_cast<uint64_t>(expected.cluster_ids[i]), "the same clusters");
    require(pass.joined(pass.cluster(i)) || pass.cluster(i) == i, "a cluster of several is joined");
  }
}

void fuzz_near_duplicates(const std::vector<std::string>& sources, Random& random) {
  const SignatureConfig config = random_config(random);
  std::vector<Text> texts;
  for (const std::string& source : sources) texts.emplace_back(source);
  std::vector<std::string_view> views;
  for (const Text& text : texts) views.push_back(text.view());
  ThreadTeam team(static_cast<unsigned>(1 + random.below(3)));
  const size_t row = config.num_perm * value_bytes(config.scheme);
  std::vector<uint8_t> values(views.size() * row);
  std::vector<uint64_t> shingles(views.size()), invalid(views.size());
  sign_all(views, config, team, values.data(), shingles.data(), invalid.data());
  for (const uint8_t value : values) take(value);
  SignatureTable table;
  table.values = values.data();
  table.num_documents = views.size();
  table.num_perm = config.num_perm;
  table.value_bytes = value_bytes(config.scheme);
  table.num_shingles = shingles.data();
  const size_t rows = 1 + random.below(config.num_perm), bands = config.num_perm / rows;
  StarConfig star;
  star.threshold = 0.05 + 0.95 * static_cast<double>(random.below(1000)) / 1000;
  star.verify = random.below(4) != 0;
  star.bucket_cap = 1 + random.below(6);
  star.min_matches = random.below(2) == 0 ? 0 : random.below(config.num_perm);
  const StarResult result =
      greedy_star(views, config.shingles, table, lsh_buckets(table, bands, rows, team), star, team);
  std::vector<bool> removed(views.size(), false);
  for (const Removal& removal : result.removals) removed[removal.removed] = true;
  for (const Removal& removal : result.removals) {
    require(removal.kept < removal.removed && !removed[removal.kept], "evidence is an earlier, kept document");
    require(removal.jaccard >= star.threshold && removal.jaccard <= 1, "evidence reaches the threshold");
    if (star.verify) {
      const double exact = exact_jaccard(views[removal.removed], views[removal.kept], config.shingles);
      require(exact == removal.jaccard, "evidence is exact");
    }
    require(result.cluster_ids[removal.removed] == result.cluster_ids[removal.kept], "a pair shares its cluster");
    take(removal.removed);
    take(removal.kept);
  }
  take(result.candidate_pairs);
  take(result.verified_pairs);
  take(result.skipped_pairs);
  take(result.sampled_lost);
  fuzz_runs(views, config, table, bands, rows, star, team, random);
}

void fuzz_ngrams(const std::vector<std::string>& sources, Random& random) {
  const uint32_t n = static_cast<uint32_t>(1 + random.below(12));
  NgramIndex index(n, static_cast<uint32_t>(1 + random.below(n)), static_cast<uint32_t>(random.below(4)));
  for (size_t i = 0; i < sources.size() / 2; ++i) index.add(Text(sources[i]).view());
  for (const std::string& source : sources) {
    const Text text(random.below(2) == 0 ? source : random_text(random) + source);
    for (const NgramMatch& match : index.match(text.view())) {
      require(match.begin < match.end && match.end <= text.size, "matches lie in the text");
      require(match.entry < index.num_entries(), "matches name an entry");
      take(match.begin);
      take(match.end);
      take(match.entry);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: fuzz_minhash SEED ITERATIONS\n");
    return 2;
  }
  const uint64_t seed = std::strtoull(argv[1], nullptr, 10), iterations = std::strtoull(argv[2], nullptr, 10);
  for (uint64_t iteration = 0; iteration < iterations; ++iteration) {
    Random random(fmix64(seed + iteration * 0x9E3779B97F4A7C15ull));
    std::vector<std::string> sources;
    for (size_t i = 2 + random.below(12); i > 0; --i) {
      sources.push_back(!sources.empty() && random.below(2) == 0 ? mutant(sources[random.below(sources.size())], random)
                                                                 : random_text(random));
    }
    const Text text(sources.front());
    fuzz_words(text);
    fuzz_shingles(text, random);
    fuzz_digests(text);
    fuzz_near_duplicates(sources, random);
    fuzz_ngrams(sources, random);
  }
  std::printf("%016llx\n", static_cast<unsigned long long>(digest));
  return 0;
}
