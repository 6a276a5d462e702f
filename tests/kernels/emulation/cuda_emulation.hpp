// A GPU block, or a cluster of them, on one CPU thread: every CUDA thread is a fiber, switched at synchronizations in
// an order drawn from a seed.
//
// It is made to find mistakes, not to be fast. Shared memory begins as NaN. An asynchronous copy writes NaN at once and
// its data only when the thread waits for it, so a missing wait, a missing barrier or a stage that is filled while
// others still read it turns the result into NaN. Copies outside the registered global buffers end the run, and so does
// a look into the shared memory of a block that has ended. A collective that not all lanes reach is reported as a
// deadlock.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define MIFY_DEVICE inline

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};

namespace mify::emulation {

struct Copy {
  char* to;
  const char* from;
  bool valid;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  const void* waits_for = nullptr;
  uint64_t waits_since = 0;
  std::vector<std::vector<Copy>> groups{1};
};

struct Barrier {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;
};

struct Range {
  const char* begin;
  const char* end;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Barrier> warps, blocks;
  Barrier cluster;
  int threads = 0;  // of one block
  ucontext_t scheduler;
  int running = -1;
  char* shared = nullptr;
  size_t shared_bytes = 0;  // of one block
  std::vector<Range> global;
  std::mt19937 random;
  uint64_t exchange[64][6][32];  // by warp, value and lane
  std::string error;
};

inline Block* block = nullptr;

inline void yield() {
  swapcontext(&block->fibers[block->running].context, &block->scheduler);
}

[[noreturn]] inline void fail(const std::string& what) {
  if (block->error.empty()) block->error = what;
  block->fibers[block->running].done = true;
  yield();
  std::abort();
}

inline void wait(Barrier& barrier) {
  const uint64_t generation = barrier.generation;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    // Others may go first.
    if (block->random() % 2) yield();
    return;
  }
  Fiber& self = block->fibers[block->running];
  self.waits_for = &barrier;
  self.waits_since = generation;
  while (barrier.generation == generation) yield();
  self.waits_for = nullptr;
}

inline int lane() {
  return block->running % 32;
}
inline Barrier& warp_barrier() {
  return block->warps[block->running / 32];
}
inline int rank() {
  return block->running / block->threads;
}
inline char* shared_of(int rank) {
  return block->shared + rank * block->shared_bytes;
}

// Every lane gives values and sees those of all 32.
template <int count>
inline const uint64_t (&exchange(const uint64_t (&values)[count]))[6][32] {
  const int warp = block->running / 32;
  wait(warp_barrier());
  for (int i = 0; i < count; ++i) block->exchange[warp][i][lane()] = values[i];
  wait(warp_barrier());
  return block->exchange[warp];
}
inline const uint64_t* exchange(uint64_t value) {
  const uint64_t values[1] = {value};
  return exchange(values)[0];
}

inline bool runnable(const Fiber& fiber) {
  if (fiber.done) return false;
  if (fiber.waits_for == nullptr) return true;
  return static_cast<const Barrier*>(fiber.waits_for)->generation != fiber.waits_since;
}

inline void enter(unsigned low, unsigned high) {
  const uint64_t address = (static_cast<uint64_t>(high) << 32) | low;
  (*reinterpret_cast<const std::function<void(int)>*>(address))(block->running);
  block->fibers[block->running].done = true;
  swapcontext(&block->fibers[block->running].context, &block->scheduler);
}

// Runs `body(thread)` for every thread of a block, or of `blocks` in a cluster, counted through, whose shared memory
// lies one behind the other. Throws std::runtime_error with what went wrong.
inline void run_block(int threads, size_t shared_bytes, const std::vector<Range>& global, unsigned seed, char* shared,
                      const std::function<void(int)>& body, int blocks = 1) {
  Block state;
  block = &state;
  state.random.seed(seed);
  state.shared = shared;
  state.shared_bytes = shared_bytes;
  state.global = global;
  std::memset(shared, 0xff, shared_bytes * blocks);
  state.threads = threads;
  state.fibers.resize(threads * blocks);
  state.warps.resize(threads * blocks / 32);
  for (Barrier& barrier : state.warps) barrier.expected = 32;
  state.blocks.resize(blocks);
  for (Barrier& barrier : state.blocks) barrier.expected = threads;
  state.cluster.expected = threads * blocks;
  constexpr size_t stack_bytes = 256 << 10;
  const uint64_t address = reinterpret_cast<uint64_t>(&body);
  for (Fiber& fiber : state.fibers) {
    fiber.stack = std::unique_ptr<char[]>(new char[stack_bytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(enter), 2, static_cast<unsigned>(address),
                static_cast<unsigned>(address >> 32));
  }
  std::vector<int> ready;
  while (state.error.empty()) {
    ready.clear();
    bool all_done = true;
    for (int i = 0; i < threads * blocks; ++i) {
      all_done &= state.fibers[i].done;
      if (runnable(state.fibers[i])) ready.push_back(i);
    }
    if (all_done) break;
    if (ready.empty()) {
      state.error = "deadlock: some threads wait at a barrier that others never reach";
      break;
    }
    std::shuffle(ready.begin(), ready.end(), state.random);
    for (const int i : ready) {
      if (!state.error.empty() || !runnable(state.fibers[i])) continue;
      state.running = i;
      swapcontext(&state.scheduler, &state.fibers[i].context);
    }
  }
  block = nullptr;
  if (!state.error.empty()) throw std::runtime_error(state.error);
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = half >> 15, exponent = half >> 10 & 31, mantissa = half & 1023;
  float value;
  if (exponent == 0)
    value = std::ldexp(static_cast<float>(mantissa), -24);
  else if (exponent == 31)
    value = mantissa ? NAN : INFINITY;
  else
    value = std::ldexp(static_cast<float>(mantissa + 1024), static_cast<int>(exponent) - 25);
  return sign ? -value : value;
}

inline uint16_t float_to_half(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent;
  std::frexp(size, &exponent);  // size = f * 2^exponent, 0.5 <= f < 1
  const int scale = exponent - 11 < -24 ? -24 : exponent - 11;
  const float rounded = std::nearbyint(std::ldexp(size, -scale));  // ties to even
  const float back = std::ldexp(rounded, scale);
  if (back < std::ldexp(1.0f, -14)) return sign | static_cast<uint16_t>(std::ldexp(back, 24));
  std::frexp(back, &exponent);
  const int mantissa = static_cast<int>(std::ldexp(back, 11 - exponent)) - 1024;
  return sign | static_cast<uint16_t>((exponent + 14) << 10) | static_cast<uint16_t>(mantissa);
}

inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float e4m3_to_float(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  float value;
  if (exponent == 15 && mantissa == 7)
    value = NAN;
  else
    value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                          : std::ldexp(static_cast<float>(mantissa + 8), exponent - 10);
  return bits & 0x80 ? -value : value;
}

// To the nearest, ties to even, saturating.
inline uint8_t float_to_e4m3(float value) {
  if (std::isnan(value)) return 0x7f;
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float size = std::min(std::fabs(value), 448.0f);
  if (size == 0.0f) return sign;
  int exponent;
  std::frexp(size, &exponent);                   // size = f * 2^exponent, 0.5 <= f < 1
  const int scale = std::max(exponent - 4, -9);  // of the grid there
  const float steps = std::nearbyint(std::ldexp(size, -scale));
  if (scale == -9) return sign | static_cast<uint8_t>(steps);  // subnormal, or the first normal binade: 8 to 15 steps
  const int carried = steps == 16.0f;
  return sign | static_cast<uint8_t>((scale + 10 + carried) << 3) | static_cast<uint8_t>(carried ? 0 : steps - 8);
}

}  // namespace mify::emulation

namespace mify::device {

namespace emu = mify::emulation;

inline void block_sync() {
  emu::wait(emu::block->blocks[emu::rank()]);
}
inline void cluster_sync() {
  emu::wait(emu::block->cluster);
}
inline float load_cluster(const float* mine, int rank) {
  for (int i = 0; i < emu::block->threads; ++i)
    if (emu::block->fibers[rank * emu::block->threads + i].done)
      emu::fail("the shared memory of a block that may have ended is read");
  const char* const at = reinterpret_cast<const char*>(mine);
  if (at < emu::shared_of(emu::rank()) || at + 4 > emu::shared_of(emu::rank()) + emu::block->shared_bytes)
    emu::fail("an address in another block's shared memory is made from one that is not in this block's");
  return *reinterpret_cast<const float*>(at - emu::shared_of(emu::rank()) + emu::shared_of(rank));
}
inline void warp_sync() {
  emu::wait(emu::warp_barrier());
}
inline void device_fence() {}
inline bool warp_any(bool value) {
  const uint64_t* all = emu::exchange(value);
  bool any = false;
  for (int i = 0; i < 32; ++i) any |= all[i] != 0;
  return any;
}
inline float shuffle_xor(float value, int mask) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t other = static_cast<uint32_t>(emu::exchange(bits)[emu::lane() ^ mask]);
  std::memcpy(&value, &other, 4);
  return value;
}
inline int shuffle(int value, int lane) {
  return static_cast<int>(emu::exchange(static_cast<uint32_t>(value))[lane]);
}
inline uint32_t atomic_add(uint32_t* address, uint32_t value) {
  const uint32_t before = *address;
  *address += value;
  return before;
}
inline float4 load_coherent(const float4* address) {
  return *address;
}
inline float2 load_coherent(const float2* address) {
  return *address;
}

inline void copy_async(void* shared, const void* global, bool valid) {
  char* to = static_cast<char*>(shared);
  const char* from = static_cast<const char*>(global);
  const char* const shared_begin = emu::shared_of(emu::rank());
  if (to < shared_begin || to + 16 > shared_begin + emu::block->shared_bytes)
    emu::fail("a copy goes outside shared memory");
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    emu::fail("a copy is not aligned");
  bool inside = false;
  for (const emu::Range& range : emu::block->global) inside |= from >= range.begin && from + 16 <= range.end;
  if (!inside) emu::fail("a copy comes from outside the cache");
  std::memset(to, 0xff, 16);
  emu::block->fibers[emu::block->running].groups.back().push_back({to, from, valid});
}
inline void copy_commit() {
  emu::block->fibers[emu::block->running].groups.emplace_back();
}
template <int pending>
inline void copy_wait() {
  auto& groups = emu::block->fibers[emu::block->running].groups;
  // The last entry is the group that is still open.
  while (groups.size() > static_cast<size_t>(pending) + 1) {
    for (const emu::Copy& copy : groups.front()) {
      if (copy.valid)
        std::memcpy(copy.to, copy.from, 16);
      else
        std::memset(copy.to, 0, 16);
    }
    groups.erase(groups.begin());
  }
}

inline uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<uint32_t>(bytes >> (selector >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
  return out;
}
inline float exp2_fast(float x) {
  return std::exp2(x);
}
inline float quiet_nan() {
  return NAN;
}
inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float divide(float a, float b) {
  return a / b;
}
inline float square_root(float x) {
  return std::sqrt(x);
}
inline uint32_t pack_e4m3(float low, float high) {
  return emu::float_to_e4m3(low) | static_cast<uint32_t>(emu::float_to_e4m3(high)) << 8;
}
inline uint32_t pack_bf16(float low, float high) {
  return emu::float_to_bf16(low) | static_cast<uint32_t>(emu::float_to_bf16(high)) << 16;
}
inline uint32_t pack_f16(float low, float high) {
  return emu::float_to_half(low) | static_cast<uint32_t>(emu::float_to_half(high)) << 16;
}
inline uint32_t e4m3_to_f16(uint32_t pair) {
  if (pair > 0xffff) emu::fail("more than two bytes are converted");
  return pack_f16(emu::e4m3_to_float(pair & 0xff), emu::e4m3_to_float(pair >> 8));
}

// PTX, "movmatrix": lane 4 r + c holds elements 2c and 2c + 1 of row r.
inline uint32_t transpose_8x8(uint32_t pair) {
  const uint64_t* all = emu::exchange(pair);
  const auto element = [&](int row, int column) {
    return static_cast<uint32_t>(all[row * 4 + column / 2] >> (column % 2 * 16) & 0xffff);
  };
  const int row = emu::lane() / 4, column = emu::lane() % 4 * 2;
  return element(column, row) | element(column + 1, row) << 16;
}

// PTX, "Matrix fragments for mma.m16n8k16 with floating point type".
template <bool f16>
inline void mma_16x8x16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  const auto number = [](uint32_t pair, int which) {
    const uint16_t bits = static_cast<uint16_t>(pair >> (which * 16));
    return f16 ? emu::half_to_float(bits) : emu::bf16_to_float(bits);
  };
  const uint64_t mine[6] = {a0, a1, a2, a3, b0, b1};
  const auto& all = emu::exchange(mine);
  // Only the two rows of a and the two columns of b that this lane's four results need.
  const auto a_at = [&](int row, int k) {
    return number(static_cast<uint32_t>(all[row / 8 + k / 8 * 2][row % 8 * 4 + k % 8 / 2]), k % 2);
  };
  const auto b_at = [&](int k, int column) {
    return number(static_cast<uint32_t>(all[4 + k / 8][column * 4 + k % 8 / 2]), k % 2);
  };
  const int row = emu::lane() / 4, column = emu::lane() % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    double sum = c[i];
    for (int k = 0; k < 16; ++k) sum += static_cast<double>(a_at(row + i / 2 * 8, k)) * b_at(k, column + i % 2);
    c[i] = static_cast<float>(sum);
  }
}

}  // namespace mify::device
