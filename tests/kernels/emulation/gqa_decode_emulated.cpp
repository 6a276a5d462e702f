// The decode attention kernel on the emulated GPU, and the bank conflicts of its shared memory, for the tests.
#define MIFY_CUDA_EMULATION
#include <cstdlib>
#include <numeric>
#include <set>

#include "attention/gqa_decode_kernel.cuh"

namespace {

using namespace mify;

std::string last_error;

template <class C>
void run(const GqaDecodeParams& params, const std::vector<emulation::Range>& cache, unsigned seed) {
  char* shared = static_cast<char*>(std::aligned_alloc(128, C::SHARED_BYTES));
  std::vector<int> order(params.batch * params.kv_heads * params.num_splits);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(seed);
  std::shuffle(order.begin(), order.end(), random);
  for (const int index : order) {
    emulation::run_block(C::THREADS, C::SHARED_BYTES, cache, random(), shared,
                         [&](int thread) { GqaDecodeBlock<C>(params, shared, index, thread).run(); });
  }
  std::free(shared);
}

template <class Act>
bool with_config(int head_dim, int type, int group, Act act) {
  const auto by_group = [&]<int D, KvType T>() {
    if (group >= 1 && group <= 8) return act.template operator()<GqaDecodeConfig<D, T, 1>>(), true;
    if (group >= 9 && group <= 16) return act.template operator()<GqaDecodeConfig<D, T, 2>>(), true;
    return false;
  };
  if (head_dim == 128)
    return type ? by_group.template operator()<128, KvType::fp8_e4m3>()
                : by_group.template operator()<128, KvType::bf16>();
  if (head_dim == 64)
    return type ? by_group.template operator()<64, KvType::fp8_e4m3>()
                : by_group.template operator()<64, KvType::bf16>();
  return false;
}

// How many passes a warp's read takes: `address(lane)` of `width` bytes each, in phases of 128 bytes.
template <class Address>
int passes(int width, Address address) {
  const int lanes = 128 / width;
  int worst = 0;
  for (int first = 0; first < 32; first += lanes) {
    std::vector<std::set<int>> words(32);
    for (int lane = first; lane < first + lanes; ++lane)
      for (int byte = 0; byte < width; byte += 4)
        words[(address(lane) + byte) / 4 % 32].insert((address(lane) + byte) / 4);
    for (const auto& bank : words) worst = std::max(worst, static_cast<int>(bank.size()));
  }
  return worst;
}

template <class C>
int key_passes() {
  int worst = 0;
  for (int piece = 0; piece < C::ROW / 64; ++piece)
    for (int up = 0; up < 16; up += 8)
      worst = std::max(worst, passes(16, [&](int lane) { return k_offset<C>(lane / 4 + up, piece * 4 + lane % 4); }));
  return worst;
}

template <class C>
int value_passes() {
  constexpr int mine = C::ROW / 8;
  int worst = 0;
  for (int i = 0; i < 4; ++i)
    for (int part = 0; part < (mine + 15) / 16; ++part)
      worst = std::max(worst, passes(mine < 16 ? mine : 16, [&](int lane) {
                         const int g = lane / 4, row = 2 * (lane % 4) + (i & 1) + (i & 2) * 4;
                         if (mine >= 16) return v_offset<C>(row, g * (mine / 16) + part);
                         return v_offset<C>(row, g / 2) + g % 2 * 8;
                       }));
  return worst;
}

// Whether the copies of a stage write every byte of it exactly once.
template <class C>
bool covers() {
  std::vector<int> hits(C::STAGE_BYTES / 16);
  for (int row = 0; row < C::KEYS; ++row)
    for (int chunk = 0; chunk < C::CHUNKS; ++chunk) {
      ++hits.at(k_offset<C>(row, chunk) / 16);
      ++hits.at((C::KEYS * C::ROW + v_offset<C>(row, chunk)) / 16);
    }
  return std::all_of(hits.begin(), hits.end(), [](int count) { return count == 1; });
}

}  // namespace

extern "C" {

const char* emulation_error() {
  return last_error.c_str();
}

int params_bytes() {
  return sizeof(mify::GqaDecodeParams);
}

// 0, or 1 with emulation_error() set. The cache's buffers are given so that a copy from elsewhere is found.
int emulate_gqa_decode(const mify::GqaDecodeParams* params, int head_dim, int type, const void* k, int64_t k_bytes,
                       const void* v, int64_t v_bytes, unsigned seed) {
  const char* first = static_cast<const char*>(k);
  const char* second = static_cast<const char*>(v);
  const std::vector<mify::emulation::Range> cache{{first, first + k_bytes}, {second, second + v_bytes}};
  try {
    if (!with_config(head_dim, type, params->group, [&]<class C>() { run<C>(*params, cache, seed); }))
      throw std::runtime_error("no kernel for this head dimension and group");
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
  return 0;
}

int worst_passes(int head_dim, int type, int values) {
  int worst = 0;
  with_config(head_dim, type, 1, [&]<class C>() { worst = values ? value_passes<C>() : key_passes<C>(); });
  return worst;
}

int stage_is_covered(int head_dim, int type) {
  bool covered = false;
  with_config(head_dim, type, 1, [&]<class C>() { covered = covers<C>(); });
  return covered;
}

// begin, end and active of a split.
void split_of(int length, int num_splits, int split, int* out) {
  const mify::SplitRange range = mify::split_range(length, num_splits, split, 64);
  out[0] = range.begin, out[1] = range.end, out[2] = range.active;
}
}
