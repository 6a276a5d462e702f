#include "fused/rows.hpp"

#include <algorithm>
#include <vector>

#include "cpu.hpp"
#include "fused/rows_impl.hpp"
#include "threads.hpp"

namespace mify {

#if defined(MIFY_X86)
extern const RowKernels kRowsFma;
#endif

namespace {

const RowKernels& kernels() {
#if defined(MIFY_X86)
  if (cpu_features().fma) return kRowsFma;
#endif
  return kRowKernels;
}

// Calls body(begin, end) over the rows. A thread costs some 20 us to start, so small work stays on one.
template <class Body>
void over_rows(int64_t rows, int64_t row_floats, unsigned threads, Body&& body) {
  const unsigned useful = static_cast<unsigned>(std::clamp<int64_t>(rows * row_floats / 65'536, 1, threads));
  ThreadTeam team(useful);
  const auto grain = static_cast<size_t>((rows + useful - 1) / useful);
  team.for_ranges(static_cast<size_t>(rows), std::max<size_t>(grain, 1), [&](unsigned, size_t begin, size_t end) {
    body(static_cast<int64_t>(begin), static_cast<int64_t>(end));
  });
}

}  // namespace

void norm_forward(const NormForward& op, int64_t rows, unsigned threads) {
  over_rows(rows, op.size, threads, [&](int64_t begin, int64_t end) { kernels().norm_forward(op, begin, end); });
}

void norm_backward(const NormBackward& op, int64_t rows, float* dweight, unsigned threads) {
  // A partial sum for every block of rows, added up in order: the same bits whatever the number of threads.
  const int64_t blocks = (rows + kNormBlock - 1) / kNormBlock;
  std::vector<float> partial(static_cast<size_t>(blocks * op.size), 0.0f);
  over_rows(blocks, kNormBlock * op.size, threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      kernels().norm_backward(op, block * kNormBlock, std::min(rows, (block + 1) * kNormBlock),
                              partial.data() + block * op.size);
    }
  });
  std::fill_n(dweight, op.size, 0.0f);
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t j = 0; j < op.size; ++j) dweight[j] += partial[static_cast<size_t>(block * op.size + j)];
  }
}

void glu_forward(const Glu& op, int64_t rows, unsigned threads) {
  over_rows(rows, 4 * op.size, threads, [&](int64_t begin, int64_t end) { kernels().glu_forward(op, begin, end); });
}

void glu_backward(const Glu& op, int64_t rows, unsigned threads) {
  over_rows(rows, 4 * op.size, threads, [&](int64_t begin, int64_t end) { kernels().glu_backward(op, begin, end); });
}

void rotary(const Rotary& op, int64_t tokens, unsigned threads) {
  over_rows(tokens, 2 * op.half * op.heads, threads,
            [&](int64_t begin, int64_t end) { kernels().rotary(op, begin, end); });
}

void softmax_loss(const SoftmaxLoss& op, int64_t rows, unsigned threads) {
  over_rows(rows, 4 * op.classes, threads, [&](int64_t begin, int64_t end) { kernels().softmax_loss(op, begin, end); });
}

}  // namespace mify
