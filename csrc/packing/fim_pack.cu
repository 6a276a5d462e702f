// The gather-and-patch pass on a GPU: the kernels that are built (sm_80, sm_90a) and how they are launched.
#include <cuda_runtime.h>

#include "packing/fim_pack_kernel.cuh"

namespace mify {
namespace {

template <class T, bool spans>
__global__ void __launch_bounds__(kFimPackThreads) fim_pack_kernel(const __grid_constant__ FimPackParams params) {
  FimPackBlock<T, spans>(params, blockIdx.x, threadIdx.x).run();
}

template <bool spans>
int launch(const FimPackParams& params, int token_bytes, void* stream) {
  const int64_t blocks = FimPackBlock<uint16_t, spans>::blocks(params);
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  const auto grid = static_cast<unsigned>(blocks);
  const auto on = static_cast<cudaStream_t>(stream);
  if (token_bytes == 2) {
    fim_pack_kernel<uint16_t, spans><<<grid, kFimPackThreads, 0, on>>>(params);
  } else {
    fim_pack_kernel<uint32_t, spans><<<grid, kFimPackThreads, 0, on>>>(params);
  }
  return cudaGetLastError();
}

}  // namespace

int launch_unpack_rows(const FimPackParams& params, int token_bytes, void* stream) {
  return launch<false>(params, token_bytes, stream);
}

int launch_pack_spans(const FimPackParams& params, int token_bytes, void* stream) {
  return launch<true>(params, token_bytes, stream);
}

}  // namespace mify
