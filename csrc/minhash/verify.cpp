#include "minhash/verify.hpp"

#include <memory>
#include <vector>

#include "minhash/shingle_set.hpp"

namespace mify {
namespace {

constexpr size_t kGrain = 64;

template <class Value>
size_t count_equal(const uint8_t* x, const uint8_t* y, size_t count) {
  const Value* const a = reinterpret_cast<const Value*>(x);
  const Value* const b = reinterpret_cast<const Value*>(y);
  Value equal = 0;
  for (size_t i = 0; i < count; ++i) equal += a[i] == b[i];
  return static_cast<size_t>(equal);
}

struct Comparer {
  explicit Comparer(const ShingleConfig& shingles) : builder(shingles), sets(shingles) {}

  ShingleSets builder;  // its table is used up in one call
  ShingleSets sets;     // holds the later document
  uint64_t loaded = ~uint64_t{0};
  uint64_t computed = 0;
};

}  // namespace

size_t equal_values(const SignatureTable& x, size_t row_of_x, const SignatureTable& y, size_t row_of_y) {
  return x.value_bytes == 8 ? count_equal<uint64_t>(x.row(row_of_x), y.row(row_of_y), x.num_perm)
                            : count_equal<uint32_t>(x.row(row_of_x), y.row(row_of_y), x.num_perm);
}

uint64_t similarities(const Part& x, const Part& y, std::span<const uint64_t> later, std::span<const uint64_t> earlier,
                      const ShingleConfig& shingles, const Similarity& similarity, ThreadTeam& team, double* out) {
  std::vector<std::unique_ptr<Comparer>> comparers;
  for (unsigned worker = 0; worker < team.size(); ++worker) comparers.push_back(std::make_unique<Comparer>(shingles));
  team.for_ranges(later.size(), kGrain, [&](unsigned worker, size_t begin, size_t end) {
    Comparer& comparer = *comparers[worker];
    for (size_t i = begin; i < end; ++i) {
      const size_t equal = equal_values(x.table, later[i], y.table, earlier[i]);
      out[i] = -1;
      if (!similarity.verify) {
        const double estimate = static_cast<double>(equal) / static_cast<double>(x.table.num_perm);
        if (estimate >= similarity.threshold) out[i] = estimate;
        continue;
      }
      if (equal < similarity.min_matches) continue;
      ++comparer.computed;
      if (comparer.loaded != later[i]) {
        comparer.sets.load(comparer.builder.unique(x.texts[later[i]]));
        comparer.loaded = later[i];
      }
      const double jaccard = comparer.sets.jaccard(comparer.builder.unique(y.texts[earlier[i]]), similarity.threshold);
      if (jaccard >= similarity.threshold) out[i] = jaccard;
    }
  });
  uint64_t computed = 0;
  for (const auto& comparer : comparers) computed += comparer->computed;
  return computed;
}

}  // namespace mify
