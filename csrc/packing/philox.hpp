// Counter-based randomness: Philox 4x32-10 and what the data path draws from it.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Twin of mify/data/philox.py.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace mify {

using Words = std::array<uint32_t, 4>;

enum class Purpose : uint32_t { kFim = 1, kCut = 2, kDocumentOrder = 3, kBinOrder = 4 };

inline Words philox(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t low = uint64_t{0xD2511F53} * counter[0];
    const uint64_t high = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(high >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(high),
               static_cast<uint32_t>(low >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(low)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// `epoch` is below 2^24; `document` is 64 bits of its id.
inline Words draw(uint64_t seed, uint32_t epoch, uint64_t document, uint32_t fragment, Purpose purpose) {
  return philox({static_cast<uint32_t>(document), static_cast<uint32_t>(document >> 32), fragment,
                 epoch << 8 | static_cast<uint32_t>(purpose)},
                static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// A 64-bit word scaled to [0, count) by multiply-high.
inline uint64_t below(uint64_t word, uint64_t count) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(word) * count >> 64);
}
inline uint64_t first_word(const Words& words) {
  return words[0] | uint64_t{words[1]} << 32;
}
inline uint64_t second_word(const Words& words) {
  return words[2] | uint64_t{words[3]} << 32;
}

// A keyed permutation of [0, size) without memory: six Feistel rounds with cycle walking.
class Permutation {
 public:
  Permutation(uint64_t size, uint64_t seed, uint32_t epoch, uint64_t corpus, uint32_t window, Purpose purpose)
      : size_(size), half_bits_((std::bit_width(size > 1 ? size - 1 : uint64_t{1}) + 1) / 2) {
    for (uint32_t block = 0; block < 3; ++block) {
      const Words words = draw(seed, epoch, corpus, 3 * window + block, purpose);
      keys_[2 * block] = first_word(words);
      keys_[2 * block + 1] = second_word(words);
    }
  }

  uint64_t operator()(uint64_t index) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    do {
      uint64_t left = index >> half_bits_, right = index & mask;
      for (const uint64_t key : keys_) {
        uint64_t mixed = (right ^ key) * 0xBF58476D1CE4E5B9;
        mixed = (mixed ^ mixed >> 32) * 0x94D049BB133111EB;
        const uint64_t next = left ^ (mixed >> 32 & mask);
        left = right;
        right = next;
      }
      index = left << half_bits_ | right;
    } while (index >= size_);
    return index;
  }

 private:
  uint64_t size_;
  int half_bits_;
  std::array<uint64_t, 6> keys_;
};

}  // namespace mify
