#include "attention/gqa_paged_cpu.hpp"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention/gqa_paged_cpu_impl.hpp"
#include "cpu.hpp"
#include "threads.hpp"

namespace mify {

#if defined(MIFY_X86)
extern const PagedKernels kPagedFma;
#endif

namespace {

constexpr PagedKernels kPagedBaseline = {run_paged};
constexpr int64_t kPadding = 32;

const PagedKernels& kernels() {
#if defined(MIFY_X86)
  if (cpu_features().fma) return kPagedFma;
#endif
  return kPagedBaseline;
}

// The keys of the longest sequence, and what all tokens see together.
struct Work {
  int64_t longest = 0, pairs = 0;
};

Work check(const PagedProblem& p) {
  Work work;
  const int64_t capacity = p.page_size * p.columns;
  for (int64_t b = 0; b < p.sequences; ++b) {
    const int64_t length = p.lengths[b];
    if (length < 0 || length > capacity) {
      throw std::invalid_argument("lengths[" + std::to_string(b) + "] is " + std::to_string(length) +
                                  "; it must be 0 to " + std::to_string(capacity));
    }
    work.longest = std::max(work.longest, length);
    work.pairs += length * (p.bounds == nullptr ? 1 : p.bounds[b + 1] - p.bounds[b]);
    if (p.table == nullptr) continue;
    for (int64_t column = 0; column * p.page_size < length; ++column) {
      const int64_t page = p.table[b * p.table_stride + column];
      if (page < 0 || page >= p.pages) {
        throw std::invalid_argument("page_table[" + std::to_string(b) + ", " + std::to_string(column) +
                                    "] names page " + std::to_string(page) + "; there are 0 to " +
                                    std::to_string(p.pages - 1));
      }
    }
  }
  return work;
}

}  // namespace

void gqa_paged(const PagedProblem& problem, unsigned threads) {
  const Work work = check(problem);
  const size_t jobs = static_cast<size_t>(problem.sequences) * problem.kv_heads;
  const int64_t stride = work.longest + kPadding;
  // A thread costs some 20 us to start: not worth it below a few million multiplications.
  const bool small = work.pairs * problem.query_heads * problem.head_dim < 2'000'000;
  ThreadTeam team(small ? 1u : static_cast<unsigned>(std::min<size_t>(threads, std::max<size_t>(jobs, 1))));
  std::vector<std::unique_ptr<float[]>> scores(team.size());
  for (auto& one : scores) one.reset(new float[2 * stride]);
  team.for_ranges(jobs, 1, [&](unsigned worker, size_t begin, size_t end) {
    for (size_t job = begin; job < end; ++job) {
      kernels().run(problem, static_cast<int64_t>(job / problem.kv_heads), static_cast<int>(job % problem.kv_heads),
                    scores[worker].get(), stride);
    }
  });
}

}  // namespace mify
