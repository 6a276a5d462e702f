#include "packing/bpe.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <queue>
#include <stdexcept>
#include <tuple>

#include "packing/pre_tokenizer.hpp"
#include "packing/word_key.hpp"

namespace mify {
namespace {

constexpr size_t kShortWord = 64;

constexpr size_t kWordsAhead = 32;

}  // namespace

Bpe::Bpe(const BpeDefinition& definition) : is_special_(definition.is_special), byte_ids_(definition.byte_ids) {
  const size_t size = definition.token_bytes.size();
  if (is_special_.size() != size) throw std::invalid_argument("is_special: one flag for each token is expected");
  if (byte_ids_.size() != 256) throw std::invalid_argument("byte_ids: 256 ids are expected");
  const size_t num_merges = definition.merge_left.size();
  if (definition.merge_right.size() != num_merges || definition.merge_result.size() != num_merges) {
    throw std::invalid_argument("merges: as many right sides and results as left sides are expected");
  }
  const auto known = [&](uint32_t id) { return id < size; };
  if (!std::ranges::all_of(byte_ids_, known) || !std::ranges::all_of(definition.merge_left, known) ||
      !std::ranges::all_of(definition.merge_right, known) || !std::ranges::all_of(definition.merge_result, known)) {
    throw std::invalid_argument("merges, byte_ids: an id is beyond the vocabulary");
  }
  starts_.push_back(0);
  for (const std::string& token : definition.token_bytes) {
    bytes_ += token;
    starts_.push_back(bytes_.size());
    const auto characters =
        std::ranges::count_if(token, [](char c) { return !is_continuation(static_cast<uint8_t>(c)); });
    if (token.size() > std::numeric_limits<uint16_t>::max())
      throw std::invalid_argument("a token has over 65535 bytes");
    characters_.push_back(static_cast<uint16_t>(characters));
    line_feeds_.push_back(static_cast<uint16_t>(std::ranges::count(token, '\n')));
  }

  vocab_size_ = size;
  const size_t table_size = std::max(size, kTableSize);
  starts_.resize(table_size + 1, bytes_.size());
  characters_.resize(table_size);
  line_feeds_.resize(table_size);
  is_special_.resize(table_size);

  merges_.resize(std::bit_ceil(2 * num_merges + 2));
  merge_shift_ = 64 - std::countr_zero(merges_.size());
  for (size_t rank = 0; rank < num_merges; ++rank) {
    const uint64_t pair = uint64_t{definition.merge_left[rank]} << 32 | definition.merge_right[rank];
    size_t slot = pair * kOdd >> merge_shift_;
    while (merges_[slot].pair != kNoPair && merges_[slot].pair != pair) slot = (slot + 1) & (merges_.size() - 1);
    // Of equal pairs the last counts, as in a map that is filled in order.
    merges_[slot] = {pair, static_cast<uint32_t>(rank), definition.merge_result[rank]};
  }

  std::vector<uint32_t> alone;
  std::vector<Entry> words(std::bit_ceil(2 * size + 2));
  word_shift_ = 64 - std::countr_zero(words.size());
  for (uint32_t id = 0; id < size; ++id) {
    const std::string_view word = bytes(id);
    if (is_special_[id] || word.empty()) continue;
    if (!definition.ignore_merges) {
      alone.clear();
      encode_word(word, alone);
      if (alone.size() != 1 || alone[0] != id) continue;
    }
    size_t slot = slot_of(key_of(word), word.size());
    while (words[slot].id != kNoToken) slot = (slot + 1) & (words.size() - 1);
    words[slot] = {key_of(word), id, static_cast<uint32_t>(word.size())};
  }
  words_ = std::move(words);
}

const Bpe::Merge* Bpe::find_merge(uint32_t left, uint32_t right) const {
  const uint64_t pair = uint64_t{left} << 32 | right;
  size_t slot = pair * kOdd >> merge_shift_;
  while (merges_[slot].pair != pair) {
    if (merges_[slot].pair == kNoPair) return nullptr;
    slot = (slot + 1) & (merges_.size() - 1);
  }
  return &merges_[slot];
}

uint64_t Bpe::key_of(std::string_view word) {
  return word_key(word);
}

size_t Bpe::slot_of(uint64_t key, size_t size) const {
  return word_slot(key, size, word_shift_);
}

uint32_t Bpe::find_word(std::string_view word, uint64_t key) const {
  if (words_.empty()) return kNoToken;
  size_t slot = slot_of(key, word.size());
  for (; words_[slot].id != kNoToken; slot = (slot + 1) & (words_.size() - 1)) {
    const Entry& entry = words_[slot];
    if (entry.key != key || entry.size != word.size()) continue;
    if (word.size() <= kInlineWord || bytes(entry.id) == word) return entry.id;
  }
  return kNoToken;
}

void Bpe::encode_word(std::string_view word, uint64_t key, std::vector<uint32_t>& out) const {
  const uint32_t whole = find_word(word, key);
  if (whole != kNoToken) {
    out.push_back(whole);
  } else if (word.size() <= kShortWord) {
    merge_short(word, out);
  } else {
    merge_long(word, out);
  }
}

// The pair of lowest rank, the leftmost of equals, is merged until none is left. Quadratic, and fastest for words.
void Bpe::merge_short(std::string_view word, std::vector<uint32_t>& out) const {
  std::array<uint32_t, kShortWord> ids;
  std::array<uint32_t, kShortWord> ranks;
  std::array<uint32_t, kShortWord> results;
  size_t size = word.size();
  for (size_t i = 0; i < size; ++i) ids[i] = byte_ids_[static_cast<uint8_t>(word[i])];
  const auto look = [&](size_t i) {
    const Merge* const merge = i + 1 < size ? find_merge(ids[i], ids[i + 1]) : nullptr;
    ranks[i] = merge != nullptr ? merge->rank : kNoRank;
    results[i] = merge != nullptr ? merge->result : 0;
  };
  for (size_t i = 0; i < size; ++i) look(i);
  for (;;) {
    const size_t best = static_cast<size_t>(std::min_element(ranks.begin(), ranks.begin() + size) - ranks.begin());
    if (size == 0 || ranks[best] == kNoRank) break;
    ids[best] = results[best];
    --size;
    for (size_t i = best + 1; i < size; ++i) {
      ids[i] = ids[i + 1];
      ranks[i] = ranks[i + 1];
      results[i] = results[i + 1];
    }
    look(best);
    if (best > 0) look(best - 1);
  }
  out.insert(out.end(), ids.begin(), ids.begin() + size);
}

// The same with a heap and a linked list: a line of ten thousand `=` must not cost a hundred million steps.
void Bpe::merge_long(std::string_view word, std::vector<uint32_t>& out) const {
  struct Node {
    uint32_t id;
    uint32_t before, after;
    bool alive;
  };
  const uint32_t size = static_cast<uint32_t>(word.size());
  std::vector<Node> nodes(size);
  for (uint32_t i = 0; i < size; ++i) nodes[i] = {byte_ids_[static_cast<uint8_t>(word[i])], i - 1, i + 1, true};
  struct Candidate {
    uint32_t rank, left, left_id, right_id, result;
    bool operator>(const Candidate& other) const { return std::tie(rank, left) > std::tie(other.rank, other.left); }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto look = [&](uint32_t left) {
    if (left >= size || nodes[left].after >= size) return;
    const uint32_t right_id = nodes[nodes[left].after].id;
    if (const Merge* const merge = find_merge(nodes[left].id, right_id)) {
      queue.push({merge->rank, left, nodes[left].id, right_id, merge->result});
    }
  };
  for (uint32_t i = 0; i + 1 < size; ++i) look(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Node& left = nodes[best.left];
    if (!left.alive || left.id != best.left_id || left.after >= size || nodes[left.after].id != best.right_id) continue;
    Node& right = nodes[left.after];
    left.id = best.result;
    right.alive = false;
    left.after = right.after;
    if (left.after < size) nodes[left.after].before = best.left;
    look(best.left);
    look(left.before);
  }
  for (uint32_t i = 0; i < size; i = nodes[i].after) out.push_back(nodes[i].id);
}

void Bpe::encode(std::string_view text, std::vector<uint32_t>& out) const {
  PreTokenizer pre_tokenizer(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t end = pre_tokenizer.next(at);
    encode_word(text.substr(at, end - at), out);
    at = end;
  }
}

// Words are looked up in groups: the table's lines are asked for while the rest of the group is still being cut.
void Bpe::encode(std::string_view text, std::vector<uint32_t>& out, WordMemory& memory) const {
  PreTokenizer pre_tokenizer(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  std::array<std::string_view, kWordsAhead> words;
  std::array<uint64_t, kWordsAhead> keys;
  for (size_t at = 0; at < text.size();) {
    size_t count = 0;
    for (; count < kWordsAhead && at < text.size(); ++count) {
      const size_t end = pre_tokenizer.next(at);
      words[count] = text.substr(at, end - at);
      keys[count] = key_of(words[count]);
      __builtin_prefetch(&words_[slot_of(keys[count], end - at)]);
      at = end;
    }
    for (size_t i = 0; i < count; ++i) {
      const uint32_t whole = find_word(words[i], keys[i]);
      if (whole != kNoToken) {
        out.push_back(whole);
      } else {
        encode_remembering(words[i], keys[i], out, memory);
      }
    }
  }
}

void Bpe::encode_remembering(std::string_view word, uint64_t key, std::vector<uint32_t>& out,
                             WordMemory& memory) const {
  using Slot = WordMemory::Slot;
  if (word.size() > Slot::kMostBytes) return encode_word(word, key, out);
  Slot& slot = memory.slots_[(key + word.size()) * kOdd >> (64 - WordMemory::kBits)];
  if (std::string_view(slot.word, slot.size) == word) {
    out.insert(out.end(), slot.ids, slot.ids + slot.num_ids);
    return;
  }
  const size_t first = out.size();
  encode_word(word, key, out);
  const size_t num_ids = out.size() - first;
  if (num_ids > Slot::kMostIds) return;
  std::memcpy(slot.word, word.data(), word.size());
  std::memcpy(slot.ids, out.data() + first, num_ids * sizeof(uint32_t));
  slot.size = static_cast<uint8_t>(word.size());
  slot.num_ids = static_cast<uint8_t>(num_ids);
}

}  // namespace mify
