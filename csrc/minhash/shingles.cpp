#include "minhash/shingles.hpp"

#include <algorithm>

#include "minhash/digests.hpp"
#include "text/unicode.hpp"
#include "text/word_hash.hpp"

namespace mify {
namespace {

constexpr uint64_t kBase = 0x9E3779B97F4A7C15ull;

}  // namespace

Shingler::Shingler(const ShingleConfig& config)
    : config_(config), scanner_(std::make_unique<WordScanner>(std::string_view())) {
  for (uint32_t i = 0; i < config.ngram; ++i) power_ *= kBase;
  word_hashes_.resize(config.ngram + WordScanner::kCapacity);
  out_.resize(WordScanner::kCapacity);
}

void Shingler::start(std::string_view text) {
  scanner_->reset(text);
  finished_ = false;
  num_words_ = 0;
  invalid_bytes_ = 0;
  rolling_ = 0;
  std::fill_n(word_hashes_.begin(), config_.ngram, 0);
  joined_.clear();
  joined_begins_.clear();
}

std::span<const uint64_t> Shingler::next() {
  while (!finished_) {
    if (scanner_->done()) {
      finished_ = true;
      invalid_bytes_ = scanner_->invalid_bytes();
      if (num_words_ == 0 || num_words_ >= config_.ngram) break;
      out_[0] = config_.hash == ShingleHash::kFast64 ? rolling_ : hash_joined(0);
      return {out_.data(), 1};
    }
    const size_t found = scanner_->next();
    if (found == 0) continue;
    const size_t count = config_.hash == ShingleHash::kFast64 ? roll(hash_words(found)) : join_and_hash(found);
    if (count > 0) return {out_.data(), count};
  }
  return {};
}

size_t Shingler::hash_words(size_t found) {
  const uint8_t* const text = scanner_->text();
  const size_t* const begins = scanner_->begins();
  const size_t* const ends = scanner_->ends();
  const uint64_t fold = config_.lowercase ? kLowerBits : 0;
  uint64_t* const hashes = word_hashes_.data() + config_.ngram;
  // Words that begin in the last 16 bytes would be read past the end of the text.
  size_t safe = found;
  while (safe > 0 && begins[safe - 1] + 16 > scanner_->size()) --safe;
  if (config_.lowercase && scanner_->may_hold_non_ascii()) {
    for (size_t i = 0; i < found; ++i) {
      const uint8_t* const word = text + begins[i];
      const size_t length = ends[i] - begins[i];
      hashes[i] = is_ascii(word, length) ? hash_word_at_end(word, length, fold) : hash_lower_word(word, length);
    }
    return found;
  }
  for (size_t i = 0; i < safe; ++i) hashes[i] = hash_word(text + begins[i], ends[i] - begins[i], fold);
  for (size_t i = safe; i < found; ++i) hashes[i] = hash_word_at_end(text + begins[i], ends[i] - begins[i], fold);
  return found;
}

size_t Shingler::roll(size_t found) {
  const uint64_t* const hashes = word_hashes_.data();
  const uint32_t n = config_.ngram;
  uint64_t rolling = rolling_;
  const size_t incomplete = num_words_ + 1 >= n ? 0 : std::min<size_t>(found, n - 1 - num_words_);
  for (size_t i = 0; i < incomplete; ++i) rolling = rolling * kBase + hashes[n + i];
  for (size_t i = incomplete; i < found; ++i) {
    rolling = rolling * kBase + (hashes[n + i] - hashes[i] * power_);
    out_[i - incomplete] = rolling;
  }
  rolling_ = rolling;
  num_words_ += found;
  std::copy_n(word_hashes_.begin() + static_cast<ptrdiff_t>(found), n, word_hashes_.begin());
  return found - incomplete;
}

size_t Shingler::join_and_hash(size_t found) {
  // Keep the last n - 1 words of what was joined before.
  const size_t kept = std::min<size_t>(joined_begins_.size(), config_.ngram - 1);
  if (kept < joined_begins_.size()) {
    const size_t drop = joined_begins_.size() - kept;
    const size_t from = kept > 0 ? joined_begins_[drop] : joined_.size();
    joined_.erase(joined_.begin(), joined_.begin() + static_cast<ptrdiff_t>(from));
    joined_begins_.erase(joined_begins_.begin(), joined_begins_.begin() + static_cast<ptrdiff_t>(drop));
    for (size_t& begin : joined_begins_) begin -= from;
  }
  const uint8_t* const text = scanner_->text();
  size_t count = 0;
  for (size_t i = 0; i < found; ++i) {
    const uint8_t* word = text + scanner_->begins()[i];
    const uint8_t* const end = text + scanner_->ends()[i];
    joined_begins_.push_back(joined_.size());
    if (!config_.lowercase) {
      joined_.insert(joined_.end(), word, end);
    } else {
      while (word < end) {
        const CodePoint code = decode_utf8(word, end);
        word += code.length;
        uint8_t bytes[4];
        const uint32_t length = encode_utf8(to_lower(code.value), bytes);
        joined_.insert(joined_.end(), bytes, bytes + length);
      }
    }
    joined_.push_back(' ');
    ++num_words_;
    if (joined_begins_.size() >= config_.ngram) {
      out_[count++] = hash_joined(joined_begins_.size() - config_.ngram);
    }
  }
  return count;
}

uint64_t Shingler::hash_joined(size_t first_word) const {
  const size_t begin = joined_begins_[first_word];
  const size_t size = joined_.size() - 1 - begin;  // less the last space
  return config_.hash == ShingleHash::kSha1 ? sha1_prefix64(joined_.data() + begin, size)
                                            : xxh32(joined_.data() + begin, size);
}

}  // namespace mify
