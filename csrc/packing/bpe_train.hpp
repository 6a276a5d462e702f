// Training a byte-level BPE: the pre-tokens of a corpus are counted, then the most frequent pair is merged again and
// again. The same merges as the trainer of `tokenizers`, many times as fast.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mify {

// Pre-tokens (qwen2 pattern) and how often each occurs.
class WordCounts {
 public:
  void add(std::string_view text);
  void add(const WordCounts& other);
  size_t size() const { return used_; }

  struct Word {
    std::string_view bytes;
    uint64_t count;
  };
  // Sorted, so that nothing depends on who counted what.
  std::vector<Word> sorted() const;

 private:
  struct Entry {  // size 0: free
    uint64_t key = 0, count = 0, at = 0, size = 0;
  };
  std::string_view bytes(const Entry& entry) const { return {bytes_.data() + entry.at, entry.size}; }
  void count(std::string_view word, uint64_t key, uint64_t times);
  void grow();

  std::vector<Entry> table_;  // open addressing
  std::string bytes_;
  size_t used_ = 0;
  int shift_ = 64;
};

struct TrainedBpe {
  // Token i of those made by merging has the bytes tokens[i] and the id first_id + 256 + i.
  std::vector<std::string> tokens;
  // In the order in which they were found. Two pairs may have one result ("a" + "bc", "ab" + "c").
  std::vector<uint32_t> merge_left, merge_right, merge_result;
};

// Ids from `first_id` on: the 256 bytes in the order of `bytes`, then the merged tokens until there are `vocab_size`
// ids in all or no pair is left.
TrainedBpe train_bpe(const WordCounts& words, uint32_t vocab_size, uint32_t first_id, std::span<const uint8_t> bytes);

}  // namespace mify
