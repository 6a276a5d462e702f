#include "minhash/signature.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "minhash/permute.hpp"
#include "text/mix.hpp"
#include "text/word_hash.hpp"

namespace mify {
namespace {

// Shingles that pass through a kernel at once: their mixed hashes stay in the first-level cache.
constexpr size_t kBlock = 2048;

}  // namespace

Signer::Signer(const SignatureConfig& config)
    : config_(config),
      shingler_(config.shingles),
      fold_(config.shingles.hash == ShingleHash::kFast64),
      padded_((config.num_perm + kPermGroup - 1) / kPermGroup * kPermGroup) {
  if (config.num_perm == 0) throw std::invalid_argument("num_perm must be at least 1");
  if (config.scheme == Scheme::kOnePermutation) {
    minima32_.resize(2 * size_t{config.num_perm});
    return;
  }
  if (config.a.size() != config.num_perm || config.b.size() != config.num_perm) {
    throw std::invalid_argument("a and b must hold num_perm values each");
  }
  a64_ = config.a;
  b64_ = config.b;
  a64_.resize(padded_, 1);
  b64_.resize(padded_, 0);
  if (config.scheme == Scheme::kAffine32) {
    a32_.assign(a64_.begin(), a64_.end());
    b32_.assign(b64_.begin(), b64_.end());
  }
  if (config.scheme == Scheme::kAffine64) {
    minima64_.resize(padded_);
    mixed64_.resize(kBlock);
  } else {
    minima32_.resize(padded_);
    mixed32_.resize(kBlock);
  }
}

void Signer::sign(std::string_view text, void* out) {
  begin();
  shingler_.start(text);
  for (std::span<const uint64_t> hashes = shingler_.next(); !hashes.empty(); hashes = shingler_.next()) add(hashes);
  finish(out);
}

void Signer::sign_hashes(std::span<const uint64_t> hashes, void* out) {
  begin();
  add(hashes);
  finish(out);
}

void Signer::begin() {
  num_shingles_ = 0;
  std::fill(minima32_.begin(), minima32_.end(), ~uint32_t{0});
  std::fill(minima64_.begin(), minima64_.end(), ~uint64_t{0});
}

void Signer::add(std::span<const uint64_t> hashes) {
  num_shingles_ += hashes.size();
  if (config_.scheme == Scheme::kOnePermutation) return add_one_permutation(hashes);
  const PermuteKernels& kernels = permute_kernels();
  for (size_t at = 0; at < hashes.size(); at += kBlock) {
    const size_t count = std::min(kBlock, hashes.size() - at);
    const uint64_t* const block = hashes.data() + at;
    switch (config_.scheme) {
      case Scheme::kAffine32:
        kernels.affine32(block, count, fold_, a32_.data(), b32_.data(), padded_, mixed32_.data(), minima32_.data());
        break;
      case Scheme::kAffine64:
        for (size_t i = 0; i < count; ++i) mixed64_[i] = fmix64(block[i]);
        kernels.affine64(mixed64_.data(), count, a64_.data(), b64_.data(), padded_, minima64_.data());
        break;
      default:
        for (size_t i = 0; i < count; ++i) mixed32_[i] = static_cast<uint32_t>(block[i]);
        kernels.legacy(mixed32_.data(), count, a64_.data(), b64_.data(), padded_, minima32_.data());
        break;
    }
  }
}

// One-permutation hashing (Li, Owen, Zhang 2012): one hash chooses a bin by its high half and competes there with its
// low half, so a shingle costs one update however many bins there are. A bin that holds 2^32 - 1 counts as empty.
// Shingles go to two tables in turn (merged in finish()): an update then rarely waits for the one before it.
void Signer::add_one_permutation(std::span<const uint64_t> hashes) {
  const uint64_t bins = config_.num_perm, salt = fmix64(config_.seed);
  uint32_t* const even = minima32_.data();
  uint32_t* const odd = even + bins;
  const auto update = [bins, salt](uint64_t hash, uint32_t* minima) {
    const uint64_t x = mum(hash ^ salt, kS1);
    const uint64_t bin = (x >> 32) * bins >> 32;
    const uint32_t value = static_cast<uint32_t>(x);
    minima[bin] = value < minima[bin] ? value : minima[bin];
  };
  size_t i = 0;
  for (; i + 2 <= hashes.size(); i += 2) {
    update(hashes[i], even);
    update(hashes[i + 1], odd);
  }
  if (i < hashes.size()) update(hashes[i], even);
}

// Optimal densification (Shrivastava 2017): an empty bin borrows from a bin drawn by a hash of (bin, attempt) that is
// the same for all texts, drawing again until the bin drawn was filled by a shingle. Merges the two tables first.
void Signer::densify() {
  const uint64_t bins = config_.num_perm;
  uint32_t* const filled = minima32_.data() + bins;
  uint32_t all = ~uint32_t{0};
  for (uint64_t bin = 0; bin < bins; ++bin) {
    filled[bin] = minima32_[bin] = std::min(minima32_[bin], filled[bin]);
    all = std::min(all, filled[bin]);
  }
  if (all == ~uint32_t{0}) return;
  for (uint64_t bin = 0; bin < bins; ++bin) {
    for (uint64_t attempt = 1; minima32_[bin] == ~uint32_t{0}; ++attempt) {
      const uint64_t drawn = (fmix64((bin << 32 | attempt) ^ config_.seed * 0x9E3779B97F4A7C15ull) >> 32) * bins >> 32;
      minima32_[bin] = filled[drawn];
    }
  }
}

void Signer::finish(void* out) {
  if (config_.scheme == Scheme::kOnePermutation) densify();
  const bool wide = config_.scheme == Scheme::kAffine64;
  const void* const minima = wide ? static_cast<const void*>(minima64_.data()) : minima32_.data();
  std::memcpy(out, minima, config_.num_perm * value_bytes(config_.scheme));
}

void sign_all(std::span<const std::string_view> texts, const SignatureConfig& config, ThreadTeam& team, uint8_t* out,
              uint64_t* num_shingles, uint64_t* invalid_bytes) {
  const size_t row = config.num_perm * value_bytes(config.scheme);
  std::vector<std::unique_ptr<Signer>> signers;
  for (unsigned worker = 0; worker < team.size(); ++worker) signers.push_back(std::make_unique<Signer>(config));
  team.for_ranges(texts.size(), 16, [&](unsigned worker, size_t begin, size_t end) {
    Signer& signer = *signers[worker];
    for (size_t i = begin; i < end; ++i) {
      signer.sign(texts[i], out + i * row);
      num_shingles[i] = signer.num_shingles();
      invalid_bytes[i] = signer.invalid_bytes();
    }
  });
}

}  // namespace mify
