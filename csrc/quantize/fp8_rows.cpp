#include "quantize/fp8_rows.hpp"

#include <algorithm>
#include <atomic>

#include "cpu.hpp"
#include "quantize/fp8_rows_impl.hpp"
#include "threads.hpp"

namespace mify {

#if defined(MIFY_X86)
extern const Fp8RowsKernel kFp8RowsAvx2;
#endif

namespace {

Fp8RowsKernel kernel() {
#if defined(MIFY_X86)
  if (cpu_features().avx2) return kFp8RowsAvx2;
#endif
  return fp8_rows_kernel;
}

}  // namespace

bool fp8_rows(const Fp8Rows& op, int64_t rows, unsigned threads) {
  // A thread costs some 20 us to start, so small work stays on one.
  const unsigned useful = static_cast<unsigned>(std::clamp<int64_t>(rows * op.columns / 1'048'576, 1, threads));
  ThreadTeam team(useful);
  std::atomic<bool> finite{true};
  team.for_ranges(static_cast<size_t>(rows), (static_cast<size_t>(rows) + useful - 1) / useful,
                  [&](unsigned, size_t begin, size_t end) {
                    if (!kernel()(op, static_cast<int64_t>(begin), static_cast<int64_t>(end))) finite = false;
                  });
  return finite;
}

}  // namespace mify
