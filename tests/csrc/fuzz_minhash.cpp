// Random inputs through every C++ entry point of csrc/minhash and csrc/text, to be built with sanitizers.
//
//   fuzz_minhash SEED ITERATIONS
//
// Inputs lie in heap blocks of exactly their size, so that a read past an end is seen. Ends with a digest of all
// results after ITERATIONS inputs: it must be the same on every CPU path and for any number of threads.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "minhash/digests.hpp"
#include "minhash/lsh.hpp"
#include "minhash/shingle_set.hpp"
#include "minhash/signature.hpp"
#include "minhash/star.hpp"
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
