// Text to the hashes of its word n-grams, a block at a time, in memory that does not grow with the text.
//
// The shingles of a text are its word n-grams; a text of fewer words than n (but at least one) has one shingle, of all
// its words. Three hashes of a shingle:
//   fast64   sum over its words of hash(word_j) * B^(n-1-j) mod 2^64, B odd: rolled in two multiplications a word
//   sha1     the first 8 bytes, little-endian, of SHA-1 of the words joined by single spaces: its low 32 bits are
//            datasketch's sha1_hash32, all 64 its sha1_hash64
//   xxh32    XXH32 (seed 0) of the same string
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "text/words.hpp"

namespace mify {

enum class ShingleHash { kFast64, kSha1, kXxh32 };

struct ShingleConfig {
  uint32_t ngram = 5;     // words a shingle, 1 to 64
  bool lowercase = true;  // simple Unicode lower-casing of the words
  ShingleHash hash = ShingleHash::kFast64;
};

inline constexpr uint32_t kMaxNgram = 64;

class Shingler {
 public:
  explicit Shingler(const ShingleConfig& config);

  // Begins a text, which must outlive the calls to next().
  void start(std::string_view text);

  // The next shingle hashes in the order of the text, with repetitions; empty once, at the end.
  std::span<const uint64_t> next();

  uint64_t num_words() const { return num_words_; }
  uint64_t invalid_bytes() const { return invalid_bytes_; }

 private:
  size_t hash_and_roll(size_t found);
  template <class HashWord>
  size_t roll(size_t found, HashWord&& hash_of);
  size_t join_and_hash(size_t found);
  void join(size_t begin, size_t end);
  size_t hash_joined(size_t count, size_t words);

  ShingleConfig config_;
  uint64_t power_ = 1;  // B^n
  std::unique_ptr<WordScanner> scanner_;
  bool finished_ = true;
  uint64_t num_words_ = 0;
  uint64_t invalid_bytes_ = 0;
  uint64_t rolling_ = 0;
  std::vector<uint64_t> word_hashes_;  // the n words before, then those of this stretch
  std::vector<uint64_t> out_;
  // sha1 and xxh32: the last words as they are hashed, each followed by a space, and where each begins.
  std::vector<uint8_t> joined_;
  size_t joined_size_ = 0;
  std::vector<size_t> joined_begins_;
  std::vector<const uint8_t*> messages_;
  std::vector<size_t> message_sizes_;
};

}  // namespace mify
