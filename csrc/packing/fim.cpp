#include "packing/fim.hpp"

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "packing/pre_tokenizer.hpp"

namespace mify {
namespace {

constexpr int64_t kBlock = 64;     // tokens to a partial sum
constexpr int64_t kFirstLook = 8;  // tokens to either side of a cut that are looked at first
constexpr int64_t kCharacter = 4;  // a character spans at most four tokens

const uint8_t* bytes_of(const std::string& text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

// Where the character that ends before `at` begins; `at` itself if that lies before the first byte.
size_t character_before(const std::string& text, size_t at) {
  size_t start = at;
  while (start > 0 && is_continuation(static_cast<uint8_t>(text[start - 1]))) --start;
  return start > 0 ? start - 1 : at;
}

}  // namespace

template <class T>
uint32_t FimPlanner<T>::count(std::span<const uint16_t> table) {
  sums_.clear();
  uint32_t sum = 0;
  for (int64_t block = begin_; block < end_; block += kBlock) {
    sums_.push_back(sum);
    const int64_t last = std::min(end_, block + kBlock);
    for (int64_t i = block; i < last; ++i) sum += table[ids_[i]];
  }
  return sum;
}

// The token in which the unit-th counted thing of the body lies, and how many of that token come before it.
template <class T>
std::pair<int64_t, uint32_t> FimPlanner<T>::locate(std::span<const uint16_t> table, uint32_t unit) const {
  const auto block = std::upper_bound(sums_.begin(), sums_.end(), unit) - sums_.begin() - 1;
  uint32_t sum = sums_[static_cast<size_t>(block)];
  int64_t token = begin_ + block * kBlock;
  while (sum + table[ids_[token]] <= unit) sum += table[ids_[token++]];
  return {token, unit - sum};
}

template <class T>
int64_t FimPlanner<T>::count_text(const T* ids, int64_t begin, int64_t end) const {
  const std::span<const uint16_t> table = bpe_.characters();
  int64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += bpe_.is_special(ids[i]) ? 0 : table[ids[i]];
  return sum;
}

// A uniform character of the body, and a uniform one of the nodes around it that lie within the body. Two uniform
// characters where there is none. `first` is the number of the body's first character in the document.
template <class T>
auto FimPlanner<T>::choose_node(const Words& words, uint64_t characters, std::span<const SyntaxNode> nodes,
                                int64_t first) -> std::pair<uint64_t, uint64_t> {
  const int64_t end = first + static_cast<int64_t>(characters);
  const int64_t chosen = first + static_cast<int64_t>(below(first_word(words), characters));
  around_.clear();
  for (const SyntaxNode& node : nodes) {
    if (node.start > chosen) break;
    if (node.end > chosen && node.start >= first && node.end <= end) around_.push_back(node);
  }
  if (around_.empty()) return {below(first_word(words), characters + 1), below(second_word(words), characters + 1)};
  const SyntaxNode& node = around_[below(second_word(words), around_.size())];
  return {static_cast<uint64_t>(node.start - first), static_cast<uint64_t>(node.end - first)};
}

template <class T>
auto FimPlanner<T>::choose_cuts(const Words& words, std::span<const SyntaxNode> nodes, int64_t first_character)
    -> std::pair<Position, Position> {
  const bool lines = options_.mode == CutMode::kLine;
  const std::span<const uint16_t> table = lines ? bpe_.line_feeds() : bpe_.characters();
  const uint32_t units = count(table);
  // Places to cut: every character and the end; or the start, after every line feed but a final one, and the end.
  const bool final_line_feed = bpe_.bytes(ids_[end_ - 1]).ends_with('\n');
  const uint64_t places = lines ? uint64_t{units} - final_line_feed + 2 : uint64_t{units} + 1;
  uint64_t first = below(first_word(words), places), second = below(second_word(words), places);
  if (options_.mode == CutMode::kNode && units > 0) {
    std::tie(first, second) = choose_node(words, units, nodes, first_character);
  }
  if (first > second) std::swap(first, second);
  const auto position = [&](uint64_t place) -> Position {
    if (place + 1 == places) return {end_, 0};
    if (lines && place == 0) return {begin_, 0};
    auto [token, rest] = locate(table, static_cast<uint32_t>(lines ? place - 1 : place));
    const std::string_view bytes = bpe_.bytes(ids_[token]);
    uint32_t byte = 0;
    const auto counts = [&](char c) { return lines ? c == '\n' : !is_continuation(static_cast<uint8_t>(c)); };
    while (!counts(bytes[byte]) || rest-- > 0) ++byte;
    byte += lines;
    return byte == bytes.size() ? Position{token + 1, 0} : Position{token, byte};
  };
  return {position(first), position(second)};
}

template <class T>
void FimPlanner<T>::look(int64_t first, int64_t last) {
  view_.first = first;
  view_.last = last;
  view_.bytes.clear();
  view_.starts.clear();
  for (int64_t i = first; i < last; ++i) {
    view_.starts.push_back(static_cast<uint32_t>(view_.bytes.size()));
    view_.bytes += bpe_.bytes(ids_[i]);
  }
  view_.starts.push_back(static_cast<uint32_t>(view_.bytes.size()));
}

template <class T>
int64_t FimPlanner<T>::token_beginning_at(size_t byte) const {
  const auto found = std::lower_bound(view_.starts.begin(), view_.starts.end(), byte);
  if (found == view_.starts.end() || *found != byte) return kNone;
  return view_.first + (found - view_.starts.begin());
}

// The end of the last character that lies whole in the view.
template <class T>
size_t FimPlanner<T>::whole_characters_end() const {
  const size_t size = view_.bytes.size();
  if (view_.last == end_) return size;
  const size_t start = character_before(view_.bytes, size);
  if (start == size) return 0;
  const uint8_t lead = static_cast<uint8_t>(view_.bytes[start]);
  const size_t expected = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return start + expected <= size ? size : start;
}

// Right of `low`: pre-tokenizes the piece afresh until one of its boundaries is one of the document's. Leaves the new
// pre-tokens' ids in head_; returns the document's token that begins at the common boundary, or kNone where there is
// none before `high`.
template <class T>
int64_t FimPlanner<T>::find_meeting(Position low, Position high) {
  const CharacterClasses& classes = CharacterClasses::get();
  bool all_seen = false;
  for (int64_t reach = kFirstLook;; reach *= 4) {
    if (all_seen) throw std::invalid_argument("a document's tokens are no UTF-8 text: the shard is damaged");
    look(std::max(begin_, low.token - reach), std::min(end_, low.token + reach));
    all_seen = view_.first == begin_ && view_.last == end_;
    const std::string& text = view_.bytes;
    const bool to_high = high.token < view_.last || (high.token == end_ && view_.last == end_);
    const size_t view_end = whole_characters_end();
    const size_t new_end = to_high ? view_.starts[static_cast<size_t>(high.token - view_.first)] + high.byte : view_end;
    const size_t cut = view_.starts[static_cast<size_t>(low.token - view_.first)] + low.byte;
    if (cut >= new_end) continue;  // the cut's own character is not whole in the view

    size_t old_at = cut;
    bool found = false;
    uint32_t right = character_at(bytes_of(text), cut, text.size()).code;
    while (old_at > 0) {
      const size_t before = character_before(text, old_at);
      if (before == old_at) break;
      const uint32_t left = character_at(bytes_of(text), before, text.size()).code;
      if (always_part(left, right, classes)) {
        found = true;
        break;
      }
      old_at = before;
      right = left;
    }
    if (!found && !(old_at == 0 && view_.first == begin_)) continue;

    PreTokenizer old_words(bytes_of(text), view_end), new_words(bytes_of(text), new_end);
    new_words_.clear();
    size_t new_at = cut;
    bool look_further = false;
    while (old_at != new_at && !look_further) {
      if (old_at < new_at) {
        old_at = old_words.next(old_at);
        look_further = old_words.touched_end() && view_.last != end_;
      } else if (new_at == new_end) {
        if (to_high) return kNone;
        look_further = true;
      } else {
        const size_t next = new_words.next(new_at);
        new_words_.emplace_back(new_at, next);
        new_at = next;
        look_further = new_words.touched_end() && !to_high;
      }
    }
    if (look_further) continue;
    if (to_high && new_at == new_end) return kNone;
    head_.clear();
    for (const auto& [from, to] : new_words_) {
      bpe_.encode_word(std::string_view(text).substr(from, to - from), head_);
    }
    return token_beginning_at(new_at);
  }
}

// Left of `high`: the last place where two characters always part, after `low`. Leaves the ids of what lies between it
// and `high` in tail_; returns the document's token that begins there, or kNone.
template <class T>
int64_t FimPlanner<T>::find_part(Position low, Position high) {
  const CharacterClasses& classes = CharacterClasses::get();
  for (int64_t reach = kFirstLook;; reach *= 4) {
    look(std::max(low.token, high.token - reach), std::min(end_, high.token + kCharacter));
    const std::string& text = view_.bytes;
    const size_t cut = view_.starts[static_cast<size_t>(high.token - view_.first)] + high.byte;
    const bool to_low = view_.first == low.token;
    const size_t lowest = to_low ? low.byte : 0;
    size_t at = cut;
    uint32_t right = character_at(bytes_of(text), cut, text.size()).code;
    bool found = false;
    while (at > lowest) {
      const size_t before = character_before(text, at);
      if (before == at) break;
      const uint32_t left = character_at(bytes_of(text), before, text.size()).code;
      if (always_part(left, right, classes)) {
        found = true;
        break;
      }
      at = before;
      right = left;
    }
    if (!found) {
      if (to_low) return kNone;
      continue;
    }
    tail_.clear();
    bpe_.encode(std::string_view(text).substr(at, cut - at), tail_);
    return token_beginning_at(at);
  }
}

template <class T>
void FimPlanner<T>::encode_whole(Position low, Position high, std::vector<uint32_t>& out) {
  look(low.token, std::min(end_, high.token + 1));
  const size_t last = view_.starts[static_cast<size_t>(high.token - low.token)] + high.byte;
  out.clear();
  bpe_.encode(std::string_view(view_.bytes).substr(low.byte, last - low.byte), out);
}

template <class T>
void FimPlanner<T>::encode_piece(Position low, Position high, int64_t base, Spans& spans) {
  if (low == high) return;
  head_.clear();
  const int64_t meeting = low == Position{begin_, 0} ? begin_ : find_meeting(low, high);
  int64_t part = high.token;
  tail_.clear();
  if (meeting != kNone && high.token != end_) part = find_part(low, high);
  if (meeting == kNone || part == kNone || meeting >= part) {
    encode_whole(low, high, head_);
    spans.patch(head_);
    return;
  }
  spans.patch(head_);
  spans.copy(base + meeting, base + part);
  spans.patch(tail_);
}

template <class T>
auto FimPlanner<T>::plan(const T* ids, int64_t begin, int64_t end, int64_t base, const Words& words,
                         const Words& cut_words, std::span<const SyntaxNode> nodes, int64_t characters_before,
                         Spans& spans) -> Result {
  ids_ = ids;
  int64_t body_end = ids[end - 1] == options_.end_of_text_id ? end - 1 : end;
  begin_ = begin;
  end_ = body_end;
  int64_t files = 0;
  if (options_.file_separator_id >= 0) {
    files = std::count(ids + begin, ids + body_end, static_cast<T>(options_.file_separator_id));
  }
  int64_t file_begin = begin;
  if (files > 0) {
    uint64_t chosen = below(second_word(words), static_cast<uint64_t>(files));
    const auto separator = static_cast<T>(options_.file_separator_id);
    file_begin = std::find(ids + begin, ids + body_end, separator) - ids;
    for (; chosen > 0; --chosen) file_begin = std::find(ids + file_begin + 1, ids + body_end, separator) - ids;
    end_ = std::find(ids + file_begin + 1, ids + body_end, separator) - ids;
    begin_ = file_begin + 1;
    while (begin_ < end_ && bpe_.bytes(ids[begin_]).find('\n') == std::string_view::npos) ++begin_;
    begin_ = std::min(begin_ + 1, end_);
  } else {
    while (begin_ < end_ && bpe_.is_special(ids[begin_])) ++begin_;
  }
  if (begin_ >= end_) return {};

  if (options_.mode == CutMode::kNode) characters_before += count_text(ids, begin, begin_);
  const auto [first, second] = choose_cuts(cut_words, nodes, characters_before);
  const bool spm = words[1] < options_.spm_threshold;
  if (files > 0) {
    spans.copy(base + begin, base + file_begin);
    spans.copy(base + end_, base + body_end);
    spans.copy(base + file_begin, base + begin_);
  } else {
    spans.copy(base + begin, base + begin_);
  }
  spans.patch(options_.prefix_id);
  if (!spm) encode_piece({begin_, 0}, first, base, spans);
  spans.patch(options_.suffix_id);
  encode_piece(second, {end_, 0}, base, spans);
  spans.patch(options_.middle_id);
  if (spm) encode_piece({begin_, 0}, first, base, spans);
  const int64_t middle_start = spans.piece_length();
  encode_piece(first, second, base, spans);
  spans.patch(options_.end_of_text_id);
  return {spm ? PieceMode::kSpm : PieceMode::kPsm, middle_start};
}

template class FimPlanner<uint16_t>;
template class FimPlanner<uint32_t>;

}  // namespace mify
