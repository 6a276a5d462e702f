// The norm that writes FP8 on emulated clusters, for the tests.
#define MIFY_CUDA_EMULATION
#include <numeric>
#include <string>

#include "norm/norm_fp8_kernel.cuh"

namespace {

std::string last_error;

}  // namespace

extern "C" {

const char* emulation_error() {
  return last_error.c_str();
}

int params_bytes() {
  return sizeof(mify::NormFp8Params);
}

int cluster_of(int64_t size) {
  return mify::norm_fp8_cluster(size);
}

int shared_bytes(int64_t size, int cluster) {
  return mify::norm_fp8_shared_bytes(size, cluster);
}

// 0, or 1 with emulation_error() set. Clusters run one after the other, in a shuffled order.
int emulate_norm_fp8(const mify::NormFp8Params* params, unsigned seed) {
  const int cluster = params->cluster, bytes = mify::norm_fp8_shared_bytes(params->size, cluster);
  std::vector<int> order(params->rows_padded / 128);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(seed);
  std::shuffle(order.begin(), order.end(), random);
  const size_t all = static_cast<size_t>(bytes) * cluster;
  const auto memory = std::make_unique<uint4[]>(all / 16 + 1);
  char* const shared = reinterpret_cast<char*>(memory.get());
  try {
    for (const int tile : order)
      mify::emulation::run_block(
          mify::kNormFp8Threads, bytes, {}, seed + tile, shared,
          [&](int index) {
            const int rank = index / mify::kNormFp8Threads, thread = index % mify::kNormFp8Threads;
            mify::NormFp8Block(*params, shared + rank * bytes, tile * cluster + rank, thread).run();
          },
          cluster);
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
  return 0;
}
}
