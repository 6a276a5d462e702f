#include "minhash/shingles.hpp"

#include <algorithm>
#include <cstring>

#include "minhash/digests.hpp"
#include "text/unicode.hpp"
#include "text/word_hash.hpp"

namespace mify {
namespace {

constexpr uint64_t kBase = 0x9E3779B97F4A7C15ull;
// Bytes behind the joined words that may be read (a block of SHA-1) and written (a word's last 16 bytes).
constexpr size_t kSlack = 80;

void store64(uint8_t* at, uint64_t value) {
  std::memcpy(at, &value, 8);
}

// Lower-cases the ASCII letters among eight bytes; all bytes are below 0x80.
uint64_t lower_ascii(uint64_t bytes) {
  constexpr uint64_t ones = 0x0101010101010101ull;
  const uint64_t from_a = bytes + ones * (0x80 - 'A'), past_z = bytes + ones * (0x7F - 'Z');
  return bytes | ((from_a & ~past_z & kHighBits) >> 2);
}

}  // namespace

Shingler::Shingler(const ShingleConfig& config)
    : config_(config), scanner_(std::make_unique<WordScanner>(std::string_view())) {
  for (uint32_t i = 0; i < config.ngram; ++i) power_ *= kBase;
  word_hashes_.resize(config.ngram + WordScanner::kCapacity);
  out_.resize(WordScanner::kCapacity);
  if (config.hash != ShingleHash::kFast64) {
    messages_.resize(WordScanner::kCapacity);
    message_sizes_.resize(WordScanner::kCapacity);
  }
}

void Shingler::start(std::string_view text) {
  scanner_->reset(text);
  finished_ = false;
  num_words_ = 0;
  invalid_bytes_ = 0;
  rolling_ = 0;
  std::fill_n(word_hashes_.begin(), config_.ngram, 0);
  joined_size_ = 0;
  joined_begins_.clear();
}

std::span<const uint64_t> Shingler::next() {
  while (!finished_) {
    if (scanner_->done()) {
      finished_ = true;
      invalid_bytes_ = scanner_->invalid_bytes();
      if (num_words_ == 0 || num_words_ >= config_.ngram) break;
      if (config_.hash == ShingleHash::kFast64) {
        out_[0] = rolling_;
      } else {
        hash_joined(1, joined_begins_.size());
      }
      return {out_.data(), 1};
    }
    const size_t found = scanner_->next();
    if (found == 0) continue;
    if (config_.hash == ShingleHash::kFast64) {
      const size_t incomplete = hash_and_roll(found);
      if (incomplete < found) return {out_.data() + incomplete, found - incomplete};
    } else if (const size_t count = join_and_hash(found); count > 0) {
      return {out_.data(), count};
    }
  }
  return {};
}

size_t Shingler::hash_and_roll(size_t found) {
  const uint8_t* const end = scanner_->text() + scanner_->size();
  const uint64_t fold = config_.lowercase ? kLowerBits : 0;
  const auto hash_bytes = [end, fold](const uint8_t* word, size_t length) {
    // A word that begins in the last 16 bytes would be read past the end of the text.
    return static_cast<size_t>(end - word) >= 16 ? hash_word(word, length, fold) : hash_word_at_end(word, length, fold);
  };
  if (!config_.lowercase || !scanner_->may_hold_non_ascii()) return roll(found, hash_bytes);
  return roll(found, [hash_bytes](const uint8_t* word, size_t length) {
    return is_ascii(word, length) ? hash_bytes(word, length) : hash_lower_word(word, length);
  });
}

// Hashes the words and rolls over them in one loop: the chain of rolling multiplications, four cycles a word, hides
// behind the hashing. Returns how many of the first values in out_ are of fewer than n words, so no shingles.
template <class HashWord>
size_t Shingler::roll(size_t found, HashWord&& hash_of) {
  const uint64_t power = power_;
  const uint8_t* const stretch = scanner_->text() + scanner_->stretch();
  const uint32_t* const edges = scanner_->edges();
  const uint64_t* const old = word_hashes_.data();
  uint64_t* const hashes = word_hashes_.data() + config_.ngram;
  uint64_t* const out = out_.data();
  const WordScanner::Word first = scanner_->word(0);
  hashes[0] = hash_of(scanner_->text() + first.begin, first.end - first.begin);
  uint64_t rolling = rolling_ * kBase + (hashes[0] - old[0] * power);
  out[0] = rolling;
  for (size_t i = 1; i < found; ++i) {
    const uint64_t hash = hash_of(stretch + edges[2 * i], edges[2 * i + 1] - edges[2 * i]);
    hashes[i] = hash;
    rolling = rolling * kBase + (hash - old[i] * power);
    out[i] = rolling;
  }
  rolling_ = rolling;
  const uint32_t n = config_.ngram;
  const size_t incomplete = num_words_ + 1 >= n ? 0 : std::min<size_t>(found, n - 1 - num_words_);
  num_words_ += found;
  std::copy_n(word_hashes_.begin() + static_cast<ptrdiff_t>(found), n, word_hashes_.begin());
  return incomplete;
}

size_t Shingler::join_and_hash(size_t found) {
  // Keep the last n - 1 words of what was joined before.
  const size_t kept = std::min<size_t>(joined_begins_.size(), config_.ngram - 1);
  const size_t drop = joined_begins_.size() - kept;
  if (drop > 0) {
    const size_t from = kept > 0 ? joined_begins_[drop] : joined_size_;
    std::memmove(joined_.data(), joined_.data() + from, joined_size_ - from);
    joined_size_ -= from;
    joined_begins_.erase(joined_begins_.begin(), joined_begins_.begin() + static_cast<ptrdiff_t>(drop));
    for (size_t& begin : joined_begins_) begin -= from;
  }
  for (size_t i = 0; i < found; ++i) {
    const WordScanner::Word word = scanner_->word(i);
    joined_begins_.push_back(joined_size_);
    join(word.begin, word.end);
  }
  num_words_ += found;
  return joined_begins_.size() < config_.ngram ? 0
                                               : hash_joined(joined_begins_.size() + 1 - config_.ngram, config_.ngram);
}

// Appends a word and a space.
void Shingler::join(size_t begin, size_t end) {
  const uint8_t* word = scanner_->text() + begin;
  const uint8_t* const stop = scanner_->text() + end;
  const size_t length = end - begin;
  // A lower-cased code point may take one byte more than it did, and it had two or more.
  const size_t needed = joined_size_ + length + length / 2 + kSlack;
  if (joined_.size() < needed) joined_.resize(2 * needed);
  uint8_t* out = joined_.data() + joined_size_;
  if (!config_.lowercase) {
    if (length <= 16 && begin + 16 <= scanner_->size()) {
      std::memcpy(out, word, 16);
    } else {
      std::memcpy(out, word, length);
    }
    out += length;
  } else if (!scanner_->may_hold_non_ascii() || is_ascii(word, length)) {
    if (length <= 16 && begin + 16 <= scanner_->size()) {
      store64(out, lower_ascii(load64(word)));
      store64(out + 8, lower_ascii(load64(word + 8)));
    } else {
      for (size_t i = 0; i < length; ++i) out[i] = static_cast<uint8_t>(lower_ascii(word[i]));
    }
    out += length;
  } else {
    while (word < stop) {
      const CodePoint code = decode_utf8(word, stop);
      word += code.length;
      out += encode_utf8(to_lower(code.value), out);
    }
  }
  *out++ = ' ';
  joined_size_ = static_cast<size_t>(out - joined_.data());
}

// Hashes the shingles of `words` words that begin at the first `count` words of those joined, into out_.
size_t Shingler::hash_joined(size_t count, size_t words) {
  for (size_t i = 0; i < count; ++i) {
    const size_t end = i + words < joined_begins_.size() ? joined_begins_[i + words] : joined_size_;
    messages_[i] = joined_.data() + joined_begins_[i];
    message_sizes_[i] = end - 1 - joined_begins_[i];  // less the last space
  }
  if (config_.hash == ShingleHash::kSha1) {
    sha1_prefix64_many(messages_.data(), message_sizes_.data(), count, out_.data());
  } else {
    for (size_t i = 0; i < count; ++i) out_[i] = xxh32(messages_[i], message_sizes_[i]);
  }
  return count;
}

}  // namespace mify
