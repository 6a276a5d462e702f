#include "attention/gqa_cpu.hpp"

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "attention/gqa_cpu_impl.hpp"
#include "cpu.hpp"
#include "threads.hpp"

namespace mify {

#if defined(MIFY_X86)
extern const GqaKernels kGqaFma;
#endif

namespace {

constexpr GqaKernels kGqaBaseline = {scratch_floats, forward, backward};

const GqaKernels& kernels() {
#if defined(MIFY_X86)
  if (cpu_features().fma) return kGqaFma;
#endif
  return kGqaBaseline;
}

using Job = void (*)(const GqaProblem&, int64_t, int, float*);

void run(const GqaProblem& problem, unsigned threads, Job job, bool is_backward) {
  std::vector<int64_t> documents;
  int64_t longest = 0, work = 0;
  for (int64_t document = 0; document < problem.documents; ++document) {
    const int64_t length = problem.bounds[document + 1] - problem.bounds[document];
    if (length == 0) continue;
    documents.push_back(document);
    longest = std::max(longest, length);
    work += length * std::min(length, problem.window > 0 ? problem.window : length);
  }
  // Long documents first, so that none is left for one thread at the end.
  std::stable_sort(documents.begin(), documents.end(), [&](int64_t a, int64_t b) {
    return problem.bounds[a + 1] - problem.bounds[a] > problem.bounds[b + 1] - problem.bounds[b];
  });
  const size_t jobs = documents.size() * static_cast<size_t>(problem.kv_heads);
  // A thread costs some 20 us to start: not worth it below a few hundred thousand multiplications.
  const bool small = work * problem.query_heads * problem.head_dim < 2'000'000;
  ThreadTeam team(small ? 1u : static_cast<unsigned>(std::min<size_t>(threads, std::max<size_t>(jobs, 1))));
  const size_t floats = kernels().scratch_floats(longest, problem.head_dim, is_backward);
  std::vector<std::unique_ptr<float[]>> scratch(team.size());
  for (auto& one : scratch) one.reset(new float[floats]);
  team.for_ranges(jobs, 1, [&](unsigned worker, size_t begin, size_t end) {
    for (size_t index = begin; index < end; ++index) {
      job(problem, documents[index / problem.kv_heads], static_cast<int>(index % problem.kv_heads),
          scratch[worker].get());
    }
  });
}

}  // namespace

void gqa_forward(const GqaProblem& problem, unsigned threads) {
  run(problem, threads, kernels().forward, false);
}

void gqa_backward(const GqaProblem& problem, unsigned threads) {
  run(problem, threads, kernels().backward, true);
}

}  // namespace mify
