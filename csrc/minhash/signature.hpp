// Text to MinHash signature in one pass over the text: words, rolling n-gram hashes and permutations, block by block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "minhash/shingles.hpp"
#include "threads.hpp"

namespace mify {

enum class Scheme { kAffine32, kAffine64, kLegacy, kOnePermutation };

struct SignatureConfig {
  ShingleConfig shingles;
  Scheme scheme = Scheme::kAffine32;
  uint32_t num_perm = 128;
  uint64_t seed = 1;           // of one-permutation hashing; the other schemes are their a and b
  std::vector<uint64_t> a, b;  // num_perm multipliers and offsets; empty for one-permutation hashing
};

// Bytes of one signature value: 8 for affine64, otherwise 4.
inline size_t value_bytes(Scheme scheme) {
  return scheme == Scheme::kAffine64 ? 8 : 4;
}

// Signs one text at a time; one Signer a thread.
class Signer {
 public:
  explicit Signer(const SignatureConfig& config);

  // Writes num_perm values to `out` (uint64 for affine64, otherwise uint32). A text without a word gets all ones.
  void sign(std::string_view text, void* out);
  // The same from shingle hashes.
  void sign_hashes(std::span<const uint64_t> hashes, void* out);

  // Of the last text: its shingles, with repetitions, and its bytes that were not UTF-8.
  uint64_t num_shingles() const { return num_shingles_; }
  uint64_t invalid_bytes() const { return shingler_.invalid_bytes(); }

 private:
  void begin();
  void add(std::span<const uint64_t> hashes);
  void finish(void* out);
  void add_one_permutation(std::span<const uint64_t> hashes);
  void densify();

  SignatureConfig config_;
  Shingler shingler_;
  bool fold_;
  uint64_t num_shingles_ = 0;
  size_t padded_;
  std::vector<uint32_t> a32_, b32_, minima32_, mixed32_;
  std::vector<uint64_t> a64_, b64_, minima64_, mixed64_;
};

// Signs every text into `out` (texts.size() rows of num_perm values) and tells each one's counts.
void sign_all(std::span<const std::string_view> texts, const SignatureConfig& config, ThreadTeam& team, uint8_t* out,
              uint64_t* num_shingles, uint64_t* invalid_bytes);

}  // namespace mify
