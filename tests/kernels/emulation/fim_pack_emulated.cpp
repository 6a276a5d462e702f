// The gather-and-patch kernel on an emulated GPU, for the tests. Its threads never meet, so they are run one after the
// other, blocks and threads in a shuffled order; outputs lie between guards that nobody may touch.
#define MIFY_CUDA_EMULATION
#include <numeric>
#include <string>

#include "packing/fim_pack_kernel.cuh"

namespace {

template <class T, bool spans>
void run(const mify::FimPackParams& params, unsigned seed) {
  std::vector<uint32_t> order(static_cast<size_t>(mify::FimPackBlock<T, spans>::blocks(params)) *
                              mify::kFimPackThreads);
  std::iota(order.begin(), order.end(), 0u);
  std::mt19937 random(seed);
  std::shuffle(order.begin(), order.end(), random);
  for (const uint32_t index : order) {
    const auto thread = static_cast<int>(index % mify::kFimPackThreads);
    mify::FimPackBlock<T, spans>(params, index / mify::kFimPackThreads, thread).run();
  }
}

}  // namespace

extern "C" {

int params_bytes() {
  return sizeof(mify::FimPackParams);
}

void emulate_fim_pack(const mify::FimPackParams* params, int token_bytes, int spans, unsigned seed) {
  if (token_bytes == 2) {
    spans ? run<uint16_t, true>(*params, seed) : run<uint16_t, false>(*params, seed);
  } else {
    spans ? run<uint32_t, true>(*params, seed) : run<uint32_t, false>(*params, seed);
  }
}
}
