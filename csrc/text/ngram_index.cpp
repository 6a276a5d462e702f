#include "text/ngram_index.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "text/unicode.hpp"
#include "text/word_hash.hpp"
#include "text/words.hpp"

namespace mify {
namespace {

constexpr uint64_t kBase = 0x9E3779B97F4A7C15ull;

struct Word {
  size_t begin, end;
};

const uint8_t* bytes_of(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

uint64_t hash_of(std::string_view text, const Word& word, bool may_hold_non_ascii) {
  const uint8_t* const at = bytes_of(text) + word.begin;
  const size_t length = word.end - word.begin;
  if (may_hold_non_ascii && !is_ascii(at, length)) return hash_lower_word(at, length);
  return word.begin + 16 <= text.size() ? hash_word(at, length, kLowerBits) : hash_word_at_end(at, length, kLowerBits);
}

uint64_t key_of(uint64_t rolling, uint32_t num_words) {
  return fmix64(rolling + num_words * kS3);
}

void append_lower(std::string_view text, size_t begin, size_t end, std::string& out) {
  const uint8_t* at = bytes_of(text) + begin;
  const uint8_t* const stop = bytes_of(text) + end;
  while (at < stop) {
    const CodePoint code = decode_utf8(at, stop);
    if (code.length == 0) {
      out.push_back(static_cast<char>(*at++));
      continue;
    }
    at += code.length;
    uint8_t bytes[4];
    out.append(reinterpret_cast<const char*>(bytes), encode_utf8(to_lower(code.value), bytes));
  }
}

// The words of the run joined by single spaces, lower-cased.
std::string joined_words(std::string_view text, const Word* words, size_t count) {
  std::string out;
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) out.push_back(' ');
    append_lower(text, words[i].begin, words[i].end, out);
  }
  return out;
}

// The text from the first word to the last, lower-cased, with ASCII white space runs as one space.
std::string normalized(std::string_view text, size_t begin, size_t end) {
  std::string lower, out;
  append_lower(text, begin, end, lower);
  for (const char c : lower) {
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    if (!space) {
      out.push_back(c);
    } else if (out.empty() || out.back() != ' ') {
      out.push_back(' ');
    }
  }
  return out;
}

// Whether a word has two bytes or more that are neither ASCII digits nor underscores.
bool is_named(std::string_view text, const Word& word) {
  int letters = 0;
  for (size_t i = word.begin; i < word.end; ++i) {
    const char c = text[i];
    letters += c != '_' && (c < '0' || c > '9');
  }
  return letters >= 2;
}

}  // namespace

NgramIndex::NgramIndex(uint32_t n, uint32_t min_words, uint32_t min_named_words)
    : n_(n), min_words_(min_words), min_named_words_(min_named_words), powers_(n + 1, 1) {
  if (n == 0 || n > 64) throw std::invalid_argument("n must be from 1 to 64");
  if (min_words == 0 || min_words > n) throw std::invalid_argument("min_words must be from 1 to n");
  for (uint32_t i = 1; i <= n; ++i) powers_[i] = powers_[i - 1] * kBase;
}

void NgramIndex::Filter::add(uint64_t key) {
  keys_.push_back(key);
  if (keys_.size() * 16 > bits_.size() * 64) {
    bits_.assign(std::bit_ceil(keys_.size() * 32 / 64 + 1), 0);
    mask_ = bits_.size() - 1;
    for (const uint64_t old : keys_) bits_[old >> 6 & mask_] |= uint64_t{1} << (old & 63);
  }
  bits_[key >> 6 & mask_] |= uint64_t{1} << (key & 63);
}

uint32_t NgramIndex::add(std::string_view text) {
  const uint32_t entry = static_cast<uint32_t>(num_entries_++);
  std::vector<Word> words;
  for_each_word(text, [&](size_t begin, size_t end) { words.push_back({begin, end}); });
  std::vector<uint64_t> prefix(1, 0);
  std::vector<uint32_t> named(1, 0);
  for (const Word& word : words) {
    prefix.push_back(prefix.back() * kBase + hash_of(text, word, true));
    named.push_back(named.back() + (is_named(text, word) ? 1 : 0));
  }
  if (words.size() >= n_) {
    bool any = false;
    for (size_t i = 0; i + n_ <= words.size(); ++i) {
      if (named[i + n_] - named[i] < std::min(min_named_words_, n_)) {
        ++num_unnamed_;
        continue;
      }
      any = true;
      insert(n_, prefix[i + n_] - prefix[i] * powers_[n_], joined_words(text, &words[i], n_), false, entry);
    }
    if (!any) ++num_unindexed_;
  } else if (words.size() >= min_words_ && named.back() > 0) {
    ++num_short_;
    short_beginnings_.add(key_of(prefix[min_words_], min_words_));
    insert(static_cast<uint32_t>(words.size()), prefix.back(), normalized(text, words.front().begin, words.back().end),
           true, entry);
  } else {
    ++num_unindexed_;
  }
  return entry;
}

void NgramIndex::insert(uint32_t num_words, uint64_t hash, std::string canonical, bool whole, uint32_t entry) {
  const uint64_t key = key_of(hash, num_words);
  const auto [first, last] = by_key_.equal_range(key);
  for (auto at = first; at != last; ++at) {
    Pattern& pattern = patterns_[at->second];
    if (pattern.whole != whole || pattern.canonical != canonical) continue;
    if (pattern.entries.back() != entry) pattern.entries.push_back(entry);
    return;
  }
  by_key_.emplace(key, static_cast<uint32_t>(patterns_.size()));
  patterns_.push_back({std::move(canonical), whole, {entry}});
  if (!whole) {
    ++num_ngrams_;
    ngrams_.add(key);
    return;
  }
  const auto place = std::lower_bound(short_lengths_.begin(), short_lengths_.end(), num_words);
  if (place == short_lengths_.end() || *place != num_words) short_lengths_.insert(place, num_words);
}

std::vector<NgramMatch> NgramIndex::match(std::string_view text) const {
  std::vector<Run> runs;
  // The words that begin n-grams still to be looked up, and those after them.
  std::vector<Word> words;
  std::vector<uint64_t> prefix(1, 0);  // prefix[i]: rolling hash before words[i]
  size_t before = 0;                   // words of the text before words[0]
  const auto look_up = [&](size_t first, uint32_t length, uint64_t key) {
    const auto [from, to] = by_key_.equal_range(key);
    for (auto at = from; at != to; ++at) {
      const Pattern& pattern = patterns_[at->second];
      const size_t begin = words[first].begin, end = words[first + length - 1].end;
      const std::string here = pattern.whole ? normalized(text, begin, end) : joined_words(text, &words[first], length);
      if (here != pattern.canonical) continue;
      for (const uint32_t entry : pattern.entries) runs.push_back({before + first, length, begin, end, entry});
    }
  };
  const auto key_at = [&](size_t first, uint32_t length) {
    return key_of(prefix[first + length] - prefix[first] * powers_[length], length);
  };
  WordScanner scanner(text);
  bool done = false;
  while (!done) {
    done = scanner.done();
    const size_t found = done ? 0 : scanner.next();
    for (size_t i = 0; i < found; ++i) {
      words.push_back({scanner.word(i).begin, scanner.word(i).end});
      prefix.push_back(prefix.back() * kBase + hash_of(text, words.back(), scanner.may_hold_non_ascii()));
    }
    // Before the end, only beginnings with n words at hand; at the end, all that are left.
    const size_t stop = done ? words.size() : words.size() - std::min<size_t>(words.size(), n_ - 1);
    for (size_t first = 0; first < stop; ++first) {
      const size_t left = words.size() - first;
      if (left >= n_) {
        const uint64_t key = key_at(first, n_);
        if (ngrams_.maybe(key)) look_up(first, n_, key);
      }
      if (left < min_words_ || !short_beginnings_.maybe(key_at(first, min_words_))) continue;
      for (const uint32_t length : short_lengths_) {
        if (length <= left) look_up(first, length, key_at(first, length));
      }
    }
    words.erase(words.begin(), words.begin() + static_cast<ptrdiff_t>(stop));
    prefix.erase(prefix.begin(), prefix.begin() + static_cast<ptrdiff_t>(stop));
    before += stop;
  }
  // Runs of one entry that overlap or touch become one stretch.
  std::sort(runs.begin(), runs.end(), [](const Run& x, const Run& y) {
    return std::tie(x.entry, x.first_word, x.num_words) < std::tie(y.entry, y.first_word, y.num_words);
  });
  std::vector<NgramMatch> matches;
  size_t last_word = 0;
  for (const Run& run : runs) {
    if (!matches.empty() && matches.back().entry == run.entry && run.first_word <= last_word) {
      last_word = std::max(last_word, run.first_word + run.num_words);
      matches.back().end = std::max(matches.back().end, run.end);
      continue;
    }
    matches.push_back({run.begin, run.end, run.entry});
    last_word = run.first_word + run.num_words;
  }
  std::sort(matches.begin(), matches.end(), [](const NgramMatch& x, const NgramMatch& y) {
    return std::tie(x.begin, x.entry, x.end) < std::tie(y.begin, y.entry, y.end);
  });
  return matches;
}

}  // namespace mify
