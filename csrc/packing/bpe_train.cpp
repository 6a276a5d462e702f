#include "packing/bpe_train.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <queue>
#include <stdexcept>
#include <unordered_map>

#include "packing/pre_tokenizer.hpp"
#include "packing/word_key.hpp"

namespace mify {
namespace {

constexpr size_t kWordsAhead = 32;
constexpr size_t kFirstSize = 1 << 12;

uint64_t pair_of(uint32_t left, uint32_t right) {
  return uint64_t{left} << 32 | right;
}

// Pairs numbered in the order in which they are first asked for.
class PairNumbers {
 public:
  PairNumbers() { resize(kFirstSize); }

  uint32_t operator[](uint64_t pair) {
    size_t slot = pair * kOdd >> shift_;
    for (; slots_[slot].number != kFree; slot = (slot + 1) & (slots_.size() - 1)) {
      if (slots_[slot].pair == pair) return slots_[slot].number;
    }
    const auto number = static_cast<uint32_t>(size_++);
    slots_[slot] = {pair, number};
    if (2 * size_ > slots_.size()) resize(2 * slots_.size());
    return number;
  }

 private:
  static constexpr uint32_t kFree = ~uint32_t{0};
  struct Slot {
    uint64_t pair = 0;
    uint32_t number = kFree;
  };

  void resize(size_t size) {
    std::vector<Slot> old(size);
    old.swap(slots_);
    shift_ = 64 - std::countr_zero(size);
    for (const Slot& entry : old) {
      if (entry.number == kFree) continue;
      size_t slot = entry.pair * kOdd >> shift_;
      while (slots_[slot].number != kFree) slot = (slot + 1) & (size - 1);
      slots_[slot] = entry;
    }
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
  int shift_ = 64;
};

// A pair, how often it occurred when this was queued, and the words in which it was then seen. Most frequent first, of
// equals the smaller pair.
struct Candidate {
  int64_t count;
  uint64_t pair;
  uint32_t number;  // of the pair
  uint32_t places;  // index of its list of words
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

class Trainer {
 public:
  Trainer(const WordCounts& words, uint32_t vocab_size, uint32_t first_id, std::span<const uint8_t> bytes)
      : vocab_size_(vocab_size), next_id_(first_id + 256), first_id_(first_id) {
    std::array<uint32_t, 256> id_of;
    for (uint32_t i = 0; i < 256; ++i) {
      id_of[bytes[i]] = first_id + i;
      bytes_.emplace_back(1, static_cast<char>(bytes[i]));
      known_.emplace(bytes_.back(), first_id + i);
    }
    words_.reserve(words.size());
    for (const WordCounts::Word& word : words.sorted()) {
      words_.push_back({ids_.size(), static_cast<uint32_t>(word.bytes.size()), static_cast<int64_t>(word.count)});
      for (const char c : word.bytes) ids_.push_back(id_of[static_cast<uint8_t>(c)]);
    }
  }

  TrainedBpe run() {
    for (uint32_t number = 0; number < words_.size(); ++number) {
      const Word& word = words_[number];
      const uint32_t* const ids = ids_.data() + word.first;
      for (uint32_t i = 1; i < word.size; ++i) change(ids[i - 1], ids[i], word.count, number);
    }
    queue_changed();
    TrainedBpe out;
    while (next_id_ < vocab_size_ && !queue_.empty()) {
      Candidate best = queue_.top();
      queue_.pop();
      const int64_t count = counts_[best.number];
      if (best.count != count) {
        best.count = count;
        if (count > 0) queue_.push(best);
        continue;
      }
      if (count < 1) break;
      const auto left = static_cast<uint32_t>(best.pair >> 32), right = static_cast<uint32_t>(best.pair);
      std::string joined = bytes_[left - first_id_] + bytes_[right - first_id_];
      const auto [entry, fresh] = known_.try_emplace(joined, next_id_);
      const uint32_t result = entry->second;
      if (fresh) {
        out.tokens.push_back(joined);
        bytes_.push_back(std::move(joined));
        ++next_id_;
      }
      out.merge_left.push_back(left);
      out.merge_right.push_back(right);
      out.merge_result.push_back(result);
      const std::vector<uint32_t> places = std::move(places_[best.places]);
      places_[best.places] = {};
      for (const uint32_t number : places) merge_in_word(number, left, right, result);
      queue_changed();
    }
    return out;
  }

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  struct Word {
    size_t first;  // of its ids
    uint32_t size;
    int64_t count;
  };

  // Words come in ascending order between two calls of queue_changed.
  void change(uint32_t left, uint32_t right, int64_t by, uint32_t word) {
    const uint64_t pair = pair_of(left, right);
    const uint32_t number = numbers_[pair];
    if (number == counts_.size()) {
      counts_.push_back(0);
      list_of_.push_back(kNone);
    }
    counts_[number] += by;
    if (by < 0) return;
    uint32_t& list = list_of_[number];
    if (list == kNone) {
      list = static_cast<uint32_t>(places_.size());
      places_.emplace_back();
      changed_.push_back({pair, number});
    }
    std::vector<uint32_t>& words = places_[list];
    if (words.empty() || words.back() != word) words.push_back(word);
  }

  void merge_in_word(uint32_t number, uint32_t left, uint32_t right, uint32_t result) {
    Word& word = words_[number];
    uint32_t* const ids = ids_.data() + word.first;
    uint32_t to = 0;
    for (uint32_t from = 0; from < word.size; ++from) {
      if (ids[from] != left || from + 1 == word.size || ids[from + 1] != right) {
        ids[to++] = ids[from];
        continue;
      }
      if (to > 0) {
        change(ids[to - 1], left, -word.count, number);
        change(ids[to - 1], result, word.count, number);
      }
      if (from + 2 < word.size) {
        change(right, ids[from + 2], -word.count, number);
        change(result, ids[from + 2], word.count, number);
      }
      ids[to++] = result;
      ++from;
    }
    word.size = to;
  }

  // Queues the pairs that became more frequent, each with the words in which it did.
  void queue_changed() {
    for (const Changed& changed : changed_) {
      const uint32_t list = list_of_[changed.number];
      list_of_[changed.number] = kNone;
      const int64_t count = counts_[changed.number];
      if (count > 0) {
        queue_.push({count, changed.pair, changed.number, list});
      } else {
        places_[list] = {};
      }
    }
    changed_.clear();
  }

  struct Changed {
    uint64_t pair;
    uint32_t number;
  };

  uint32_t vocab_size_, next_id_, first_id_;
  std::vector<Word> words_;
  std::vector<uint32_t> ids_;
  std::vector<std::string> bytes_;
  std::unordered_map<std::string, uint32_t> known_;
  PairNumbers numbers_;
  std::vector<int64_t> counts_;    // by a pair's number
  std::vector<uint32_t> list_of_;  // by a pair's number: the list of its words that is being filled
  std::vector<Changed> changed_;
  std::vector<std::vector<uint32_t>> places_;
  std::priority_queue<Candidate> queue_;
};

}  // namespace

void WordCounts::grow() {
  std::vector<Entry> old(std::max(kFirstSize, 2 * table_.size()));
  old.swap(table_);
  shift_ = 64 - std::countr_zero(table_.size());
  for (const Entry& entry : old) {
    if (entry.size == 0) continue;
    size_t slot = word_slot(entry.key, entry.size, shift_);
    while (table_[slot].size != 0) slot = (slot + 1) & (table_.size() - 1);
    table_[slot] = entry;
  }
}

void WordCounts::count(std::string_view word, uint64_t key, uint64_t times) {
  size_t slot = word_slot(key, word.size(), shift_);
  for (; table_[slot].size != 0; slot = (slot + 1) & (table_.size() - 1)) {
    Entry& entry = table_[slot];
    if (entry.key != key || entry.size != word.size()) continue;
    if (word.size() > kInlineWord && bytes(entry) != word) continue;
    entry.count += times;
    return;
  }
  table_[slot] = {key, times, bytes_.size(), word.size()};
  bytes_ += word;
  ++used_;
}

// In groups: the table's lines are asked for while the rest of the group is still being cut.
void WordCounts::add(std::string_view text) {
  PreTokenizer pre_tokenizer(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  std::array<std::string_view, kWordsAhead> words;
  std::array<uint64_t, kWordsAhead> keys;
  for (size_t at = 0; at < text.size();) {
    if (2 * (used_ + kWordsAhead) > table_.size()) grow();
    size_t size = 0;
    for (; size < kWordsAhead && at < text.size(); ++size) {
      const size_t end = pre_tokenizer.next(at);
      words[size] = text.substr(at, end - at);
      keys[size] = word_key(words[size]);
      __builtin_prefetch(&table_[word_slot(keys[size], end - at, shift_)]);
      at = end;
    }
    for (size_t i = 0; i < size; ++i) count(words[i], keys[i], 1);
  }
}

void WordCounts::add(const WordCounts& other) {
  for (const Entry& entry : other.table_) {
    if (entry.size == 0) continue;
    if (2 * (used_ + 1) > table_.size()) grow();
    count(other.bytes(entry), entry.key, entry.count);
  }
}

std::vector<WordCounts::Word> WordCounts::sorted() const {
  std::vector<Word> words;
  words.reserve(used_);
  for (const Entry& entry : table_) {
    if (entry.size != 0) words.push_back({bytes(entry), entry.count});
  }
  std::ranges::sort(words, {}, &Word::bytes);
  return words;
}

TrainedBpe train_bpe(const WordCounts& words, uint32_t vocab_size, uint32_t first_id, std::span<const uint8_t> bytes) {
  if (bytes.size() != 256) throw std::invalid_argument("bytes: the 256 bytes in the order of their ids are expected");
  if (vocab_size < first_id + 256) throw std::invalid_argument("vocab_size: room for 256 bytes is expected");
  return Trainer(words, vocab_size, first_id, bytes).run();
}

}  // namespace mify
