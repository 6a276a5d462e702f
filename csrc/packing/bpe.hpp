// Byte-level BPE: the ids of a pre-token, of a text, and what the FIM plan asks of a vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mify {

// What a byte-level BPE consists of. Merges are in the order of their ranks.
struct BpeDefinition {
  std::vector<std::string> token_bytes;  // by id; a special token has its name's bytes
  std::vector<uint8_t> is_special;       // by id
  std::vector<uint32_t> merge_left, merge_right, merge_result;
  std::vector<uint32_t> byte_ids;  // (256) the token of each byte
  bool ignore_merges = false;      // a pre-token that is a token as a whole is not split (Llama 3)
};

// What encoding remembers of words that are several tokens: of each slot the last one seen. It changes how long a text
// takes, never its ids. One a thread.
class WordMemory {
 public:
  WordMemory() : slots_(size_t{1} << kBits) {}

 private:
  friend class Bpe;
  static constexpr int kBits = 14;
  struct Slot {
    static constexpr size_t kMostBytes = 24, kMostIds = 8;
    char word[kMostBytes];
    uint32_t ids[kMostIds];
    uint8_t size = 0, num_ids = 0;
  };
  std::vector<Slot> slots_;
};

class Bpe {
 public:
  explicit Bpe(const BpeDefinition& definition);

  size_t vocab_size() const { return vocab_size_; }
  std::string_view bytes(uint32_t id) const {
    return {bytes_.data() + starts_[id], static_cast<size_t>(starts_[id + 1] - starts_[id])};
  }
  bool is_special(uint32_t id) const { return is_special_[id]; }
  // Ids that may be looked up: all of 16 bits, so that no damaged shard of 16-bit tokens leads beyond a table.
  static constexpr size_t kTableSize = 1 << 16;
  // Characters that begin in a token (its bytes that are no UTF-8 continuation), and its line feeds.
  std::span<const uint16_t> characters() const { return characters_; }
  std::span<const uint16_t> line_feeds() const { return line_feeds_; }

  // Appends the ids of one pre-token.
  void encode_word(std::string_view word, std::vector<uint32_t>& out) const { encode_word(word, key_of(word), out); }
  // Appends the ids of a text of valid UTF-8, pre-tokenized by itself.
  void encode(std::string_view text, std::vector<uint32_t>& out) const;
  // The same for long texts, faster.
  void encode(std::string_view text, std::vector<uint32_t>& out, WordMemory& memory) const;

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    uint32_t result = 0;
  };
  // A pre-token that is one token. Of up to eight bytes `key` is the word itself, of more a hash of it.
  struct Entry {
    uint64_t key = 0;
    uint32_t id = kNoToken;
    uint32_t size = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static constexpr uint32_t kNoToken = ~uint32_t{0};
  static constexpr uint32_t kNoRank = ~uint32_t{0};

  const Merge* find_merge(uint32_t left, uint32_t right) const;
  static uint64_t key_of(std::string_view word);
  void encode_word(std::string_view word, uint64_t key, std::vector<uint32_t>& out) const;
  uint32_t find_word(std::string_view word, uint64_t key) const;
  size_t slot_of(uint64_t key, size_t size) const;
  void encode_remembering(std::string_view word, uint64_t key, std::vector<uint32_t>& out, WordMemory& memory) const;
  void merge_short(std::string_view word, std::vector<uint32_t>& out) const;
  void merge_long(std::string_view word, std::vector<uint32_t>& out) const;

  size_t vocab_size_ = 0;
  std::string bytes_;
  std::vector<uint64_t> starts_;
  std::vector<uint8_t> is_special_;
  std::vector<uint16_t> characters_, line_feeds_;
  std::vector<uint32_t> byte_ids_;
  std::vector<Merge> merges_;  // open addressing by pair
  std::vector<Entry> words_;   // open addressing: pre-tokens that are encoded as one token
  int merge_shift_ = 0, word_shift_ = 0;
};

}  // namespace mify
