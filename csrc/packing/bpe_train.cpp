#include "packing/bpe_train.hpp"

#include <algorithm>
#include <queue>
#include <stdexcept>

#include "packing/pre_tokenizer.hpp"

namespace mify {
namespace {

uint64_t pair_of(uint32_t left, uint32_t right) {
  return uint64_t{left} << 32 | right;
}

struct Word {
  std::vector<uint32_t> ids;
  int64_t count;
};

// A pair, how often it occurred when this was queued, and the words in which it was then seen. Most frequent first, of
// equals the smaller pair.
struct Candidate {
  int64_t count;
  uint64_t pair;
  uint32_t places;  // index of its list of words
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

class Trainer {
 public:
  Trainer(const WordCounts& words, uint32_t vocab_size, uint32_t first_id, std::span<const uint8_t> bytes)
      : vocab_size_(vocab_size), next_id_(first_id + 256), first_id_(first_id) {
    std::vector<uint32_t> id_of(256);
    for (uint32_t i = 0; i < 256; ++i) {
      id_of[bytes[i]] = first_id + i;
      bytes_.emplace_back(1, static_cast<char>(bytes[i]));
      known_.emplace(bytes_.back(), first_id + i);
    }
    // Sorted, so that nothing depends on the map's order.
    std::vector<const WordCounts::Map::value_type*> entries;
    entries.reserve(words.size());
    for (const auto& entry : words.counts()) entries.push_back(&entry);
    std::ranges::sort(entries, {}, [](const auto* entry) -> const std::string& { return entry->first; });
    words_.reserve(entries.size());
    for (const auto* entry : entries) {
      Word word{{}, static_cast<int64_t>(entry->second)};
      for (const char c : entry->first) word.ids.push_back(id_of[static_cast<uint8_t>(c)]);
      words_.push_back(std::move(word));
    }
  }

  TrainedBpe run() {
    for (uint32_t number = 0; number < words_.size(); ++number) {
      const Word& word = words_[number];
      for (size_t i = 1; i < word.ids.size(); ++i) change(word.ids[i - 1], word.ids[i], word.count, number);
    }
    queue_changed();
    TrainedBpe out;
    while (next_id_ < vocab_size_ && !queue_.empty()) {
      Candidate best = queue_.top();
      queue_.pop();
      const int64_t count = counts_[best.pair];
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
  struct Changed {
    uint64_t pair;
    uint32_t word;
    friend auto operator<=>(const Changed&, const Changed&) = default;
  };

  void change(uint32_t left, uint32_t right, int64_t by, uint32_t word) {
    const uint64_t pair = pair_of(left, right);
    counts_[pair] += by;
    if (by > 0) changed_.push_back({pair, word});
  }

  void merge_in_word(uint32_t number, uint32_t left, uint32_t right, uint32_t result) {
    Word& word = words_[number];
    std::vector<uint32_t>& ids = word.ids;
    size_t to = 0;
    for (size_t from = 0; from < ids.size(); ++from) {
      if (ids[from] != left || from + 1 == ids.size() || ids[from + 1] != right) {
        ids[to++] = ids[from];
        continue;
      }
      if (to > 0) {
        change(ids[to - 1], left, -word.count, number);
        change(ids[to - 1], result, word.count, number);
      }
      if (from + 2 < ids.size()) {
        change(right, ids[from + 2], -word.count, number);
        change(result, ids[from + 2], word.count, number);
      }
      ids[to++] = result;
      ++from;
    }
    ids.resize(to);
  }

  // Queues the pairs that became more frequent, each with the words in which it did.
  void queue_changed() {
    std::ranges::sort(changed_);
    for (size_t i = 0; i < changed_.size();) {
      const uint64_t pair = changed_[i].pair;
      std::vector<uint32_t> places;
      for (; i < changed_.size() && changed_[i].pair == pair; ++i) {
        if (places.empty() || places.back() != changed_[i].word) places.push_back(changed_[i].word);
      }
      const int64_t count = counts_[pair];
      if (count <= 0) continue;
      queue_.push({count, pair, static_cast<uint32_t>(places_.size())});
      places_.push_back(std::move(places));
    }
    changed_.clear();
  }

  uint32_t vocab_size_, next_id_, first_id_;
  std::vector<Word> words_;
  std::vector<std::string> bytes_;
  std::unordered_map<std::string, uint32_t> known_;
  std::unordered_map<uint64_t, int64_t> counts_;
  std::vector<Changed> changed_;
  std::vector<std::vector<uint32_t>> places_;
  std::priority_queue<Candidate> queue_;
};

}  // namespace

void WordCounts::add(std::string_view text) {
  PreTokenizer pre_tokenizer(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t end = pre_tokenizer.next(at);
    const std::string_view word = text.substr(at, end - at);
    const auto found = counts_.find(word);
    if (found != counts_.end()) {
      ++found->second;
    } else {
      counts_.emplace(word, 1);
    }
    at = end;
  }
}

void WordCounts::add(const WordCounts& other) {
  for (const auto& [word, count] : other.counts_) counts_[word] += count;
}

TrainedBpe train_bpe(const WordCounts& words, uint32_t vocab_size, uint32_t first_id, std::span<const uint8_t> bytes) {
  if (bytes.size() != 256) throw std::invalid_argument("bytes: the 256 bytes in the order of their ids are expected");
  if (vocab_size < first_id + 256) throw std::invalid_argument("vocab_size: room for 256 bytes is expected");
  return Trainer(words, vocab_size, first_id, bytes).run();
}

}  // namespace mify
