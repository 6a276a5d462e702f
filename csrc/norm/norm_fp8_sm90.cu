// RMSNorm to FP8 in two layouts: the kernel (Hopper and later: it needs clusters) and how it is launched.
#include <cuda_runtime.h>

#include <atomic>

#include "norm_fp8_kernel.cuh"

namespace mify {
namespace {

__global__ void __launch_bounds__(kNormFp8Threads, 2) norm_fp8_kernel(const __grid_constant__ NormFp8Params params) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char shared[];
  NormFp8Block(params, shared, blockIdx.x, threadIdx.x).run();
#endif
}

// More than 48 KB of shared memory must be asked for once on every device: the most that any size needs.
cudaError_t allow_shared_memory() {
  static std::atomic<uint64_t> done{0};
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const uint64_t bit = uint64_t{1} << (device & 63);
  if (device < 64 && (done.load(std::memory_order_relaxed) & bit) != 0) return cudaSuccess;
  constexpr int most = norm_fp8_shared_bytes(128 * kNormFp8MostHeld, 1);
  const cudaError_t error = cudaFuncSetAttribute(norm_fp8_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess) done.fetch_or(bit, std::memory_order_relaxed);
  return error;
}

}  // namespace

int launch_norm_fp8(const NormFp8Params& params, void* stream) {
  if (const cudaError_t error = allow_shared_memory(); error != cudaSuccess) return error;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(params.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(params.rows_padded / 128 * params.cluster));
  config.blockDim = dim3(kNormFp8Threads);
  config.dynamicSmemBytes = static_cast<size_t>(norm_fp8_shared_bytes(params.size, params.cluster));
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, norm_fp8_kernel, params);
}

}  // namespace mify
