// Decode attention: the kernels that are built (sm_80, sm_90a) and how they are launched.
#include <cuda_runtime.h>

#include <atomic>

#include "gqa_decode_kernel.cuh"

namespace mify {
namespace {

template <class C>
__global__ void __launch_bounds__(C::THREADS, 2) gqa_decode_kernel(const __grid_constant__ GqaDecodeParams params) {
  extern __shared__ __align__(128) char shared[];
  GqaDecodeBlock<C>(params, shared, blockIdx.x, threadIdx.x).run();
}

// More than 48 KB of shared memory must be asked for once on every device.
template <class C>
cudaError_t allow_shared_memory() {
  static std::atomic<uint64_t> done{0};
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const uint64_t bit = uint64_t{1} << (device & 63);
  if (device < 64 && (done.load(std::memory_order_relaxed) & bit) != 0) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(gqa_decode_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, C::SHARED_BYTES);
  if (error == cudaSuccess) done.fetch_or(bit, std::memory_order_relaxed);
  return error;
}

template <class C>
cudaError_t launch(const GqaDecodeParams& params, cudaStream_t stream) {
  if (const cudaError_t error = allow_shared_memory<C>(); error != cudaSuccess) return error;
  const unsigned blocks = static_cast<unsigned>(params.batch) * params.kv_heads * params.num_splits;
  gqa_decode_kernel<C><<<blocks, C::THREADS, C::SHARED_BYTES, stream>>>(params);
  return cudaGetLastError();
}

template <class C>
cudaError_t describe(KernelInfo* info) {
  cudaFuncAttributes attributes;
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, gqa_decode_kernel<C>); error != cudaSuccess)
    return error;
  info->registers = attributes.numRegs;
  info->local_bytes = static_cast<int>(attributes.localSizeBytes);
  info->shared_bytes = C::SHARED_BYTES;
  info->threads = C::THREADS;
  return cudaSuccess;
}

// Calls `act` with the configuration for these figures; cudaErrorInvalidValue where there is none.
template <class Act>
cudaError_t with_config(int head_dim, KvType type, int group, Act act) {
  const auto by_group = [&]<int D, KvType T>() -> cudaError_t {
    if (group >= 1 && group <= 8) return act.template operator()<GqaDecodeConfig<D, T, 1>>();
    if (group >= 9 && group <= 16) return act.template operator()<GqaDecodeConfig<D, T, 2>>();
    return cudaErrorInvalidValue;
  };
  if (head_dim == 128 && type == KvType::bf16) return by_group.template operator()<128, KvType::bf16>();
  if (head_dim == 128 && type == KvType::fp8_e4m3) return by_group.template operator()<128, KvType::fp8_e4m3>();
  if (head_dim == 64 && type == KvType::bf16) return by_group.template operator()<64, KvType::bf16>();
  if (head_dim == 64 && type == KvType::fp8_e4m3) return by_group.template operator()<64, KvType::fp8_e4m3>();
  return cudaErrorInvalidValue;
}

}  // namespace

int launch_gqa_decode(const GqaDecodeParams& params, int head_dim, KvType kv_type, void* stream) {
  return with_config(head_dim, kv_type, params.group,
                     [&]<class C>() { return launch<C>(params, static_cast<cudaStream_t>(stream)); });
}

int gqa_decode_shared_bytes(int head_dim, KvType kv_type, int group) {
  int bytes = 0;
  with_config(head_dim, kv_type, group, [&]<class C>() {
    bytes = C::SHARED_BYTES;
    return cudaSuccess;
  });
  return bytes;
}

int gqa_decode_info(int head_dim, KvType kv_type, int group, KernelInfo* info) {
  return with_config(head_dim, kv_type, group, [&]<class C>() { return describe<C>(info); });
}

}  // namespace mify
