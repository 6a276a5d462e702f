// The few instructions that attention kernels use beyond plain C++. A test defines MIFY_CUDA_EMULATION and gives its
// own definitions, so that the kernels' index arithmetic and synchronization run on a machine without a GPU.
#pragma once

#include <cstdint>

#ifdef MIFY_CUDA_EMULATION
#include "cuda_emulation.hpp"
#else

#include <cuda_fp16.h>

#define MIFY_DEVICE __device__ __forceinline__

namespace mify::device {

MIFY_DEVICE void block_sync() {
  __syncthreads();
}
MIFY_DEVICE void warp_sync() {
  __syncwarp();
}
MIFY_DEVICE void device_fence() {
  __threadfence();
}
MIFY_DEVICE bool warp_any(bool value) {
  return __any_sync(0xffffffffu, value);
}
MIFY_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
MIFY_DEVICE int shuffle(int value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
MIFY_DEVICE uint32_t atomic_add(uint32_t* address, uint32_t value) {
  return atomicAdd(address, value);
}

// Loads that see what other blocks wrote: L1 is not coherent.
MIFY_DEVICE float4 load_coherent(const float4* address) {
  return __ldcg(address);
}
MIFY_DEVICE float2 load_coherent(const float2* address) {
  return __ldcg(address);
}

// 16 bytes from global to shared memory without passing through registers; zeros where not `valid`.
MIFY_DEVICE void copy_async(void* shared, const void* global, bool valid) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
MIFY_DEVICE void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int pending>
MIFY_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Bytes 0..3 of the result are bytes of (low, high), chosen by the nibbles of `selector`.
MIFY_DEVICE uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

MIFY_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

MIFY_DEVICE float quiet_nan() {
  return __int_as_float(0x7fffffff);
}

MIFY_DEVICE float as_float(uint32_t bits) {
  return __uint_as_float(bits);
}
// As IEEE asks, whatever the compiler was told of fast mathematics.
MIFY_DEVICE float divide(float a, float b) {
  return __fdiv_rn(a, b);
}
MIFY_DEVICE float square_root(float x) {
  return __fsqrt_rn(x);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
// What needs these is not launched on older GPUs, but parsed for them.
MIFY_DEVICE void cluster_sync() {
  __trap();
}
MIFY_DEVICE float load_cluster(const float*, int) {
  __trap();
  return 0.0f;
}
MIFY_DEVICE uint32_t pack_e4m3(float, float) {
  __trap();
  return 0;
}
#else
// A barrier of all threads of the cluster, with what they wrote before seen by all.
MIFY_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The number that lies in the shared memory of the cluster's block `rank` where `mine` lies in this block's.
MIFY_DEVICE float load_cluster(const float* mine, int rank) {
  const uint32_t here = static_cast<uint32_t>(__cvta_generic_to_shared(mine));
  uint32_t there;
  float value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(there) : "memory");
  return value;
}
// Two numbers to the nearest e4m3 values, ties to even, saturating; NaN stays NaN. `low` is the lower byte.
MIFY_DEVICE uint32_t pack_e4m3(float low, float high) {
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}
#endif

MIFY_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
MIFY_DEVICE uint32_t pack_f16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Two e4m3 in the low 16 bits to two f16. Exact.
MIFY_DEVICE uint32_t e4m3_to_f16(uint32_t pair) {
#if __CUDA_ARCH__ >= 890
  uint32_t wide;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(wide) : "h"(static_cast<uint16_t>(pair)));
  return wide;
#else
  // S EEEE MMM moved to S 0EEEE MMM0000000 is 2^-8 of the value, subnormals included. NaN (S 1111 111) becomes 480.
  const uint32_t spread = __byte_perm(pair, 0, 0x1404);
  const uint32_t small = (spread & 0x80008000u) | ((spread >> 1) & 0x3f803f80u);
  const __half2 wide = __hmul2(*reinterpret_cast<const __half2*>(&small), __floats2half2_rn(256.0f, 256.0f));
  return *reinterpret_cast<const uint32_t*>(&wide);
#endif
}

// The 8x8 transpose of a matrix of 16-bit elements that lies over a warp as mma fragments do.
MIFY_DEVICE uint32_t transpose_8x8(uint32_t pair) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
}

// c (16, 8) += a (16, 16) b (16, 8), fp32 sums. With g = lane / 4 and t = lane % 4:
// a0 (g, 2t..) a1 (g+8, 2t..) a2 (g, 2t+8..) a3 (g+8, 2t+8..); b0 (2t.., g) b1 (2t+8.., g); c0,c1 (g, 2t..) c2,c3 (g+8,
// 2t..).
template <bool f16>
MIFY_DEVICE void mma_16x8x16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                             uint32_t b1) {
  if constexpr (f16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

}  // namespace mify::device

#endif  // MIFY_CUDA_EMULATION
