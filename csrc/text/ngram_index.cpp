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

uint64_t hash_of(std::string_view text, const Word& word) {
  const uint8_t* const at = bytes_of(text) + word.begin;
  const size_t length = word.end - word.begin;
  for (size_t i = 0; i < length; ++i) {
    if (at[i] >= 0x80) return hash_lower_word(at, length);
  }
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

// Whether a word holds anything but ASCII digits and underscores.
bool is_named(std::string_view text, const Word& word) {
  for (size_t i = word.begin; i < word.end; ++i) {
    const char c = text[i];
    if (c != '_' && (c < '0' || c > '9')) return true;
  }
  return false;
}

}  // namespace

NgramIndex::NgramIndex(uint32_t n, uint32_t min_words, uint32_t min_named_words)
    : n_(n), min_words_(min_words), min_named_words_(min_named_words), powers_(n + 1, 1), filter_(1, 0) {
  if (n == 0 || n > 64) throw std::invalid_argument("n must be from 1 to 64");
  if (min_words == 0) throw std::invalid_argument("min_words must be at least 1");
  for (uint32_t i = 1; i <= n; ++i) powers_[i] = powers_[i - 1] * kBase;
}

uint32_t NgramIndex::add(std::string_view text) {
  const uint32_t entry = static_cast<uint32_t>(num_entries_++);
  std::vector<Word> words;
  for_each_word(text, [&](size_t begin, size_t end) { words.push_back({begin, end}); });
  std::vector<uint64_t> prefix(1, 0);
  std::vector<uint32_t> named(1, 0);
  for (const Word& word : words) {
    prefix.push_back(prefix.back() * kBase + hash_of(text, word));
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
  if (!whole) ++num_ngrams_;
  const auto place = std::lower_bound(lengths_.begin(), lengths_.end(), num_words);
  if (place == lengths_.end() || *place != num_words) lengths_.insert(place, num_words);
  // About 16 bits a key keep the filter's false positives near 6%.
  if (patterns_.size() * 16 > filter_.size() * 64) {
    rebuild_filter();
  } else {
    filter_[key >> 6 & filter_mask_] |= uint64_t{1} << (key & 63);
  }
}

void NgramIndex::rebuild_filter() {
  filter_.assign(std::bit_ceil(patterns_.size() * 32 / 64 + 1), 0);
  filter_mask_ = filter_.size() - 1;
  for (const auto& [key, pattern] : by_key_) filter_[key >> 6 & filter_mask_] |= uint64_t{1} << (key & 63);
}

std::vector<NgramMatch> NgramIndex::match(std::string_view text) const {
  std::vector<Run> runs;
  if (lengths_.empty()) return {};
  // Words are kept from one stretch to the next as far back as the longest n-gram reaches.
  std::vector<Word> words;
  std::vector<uint64_t> prefix(1, 0);  // prefix[i]: rolling hash before words[i]
  size_t first_word = 0;               // number in the text of words[0]
  size_t done = 0;                     // words already matched as the last of an n-gram
  WordScanner scanner(text);
  while (!scanner.done()) {
    const size_t found = scanner.next();
    for (size_t i = 0; i < found; ++i) {
      words.push_back({scanner.begins()[i], scanner.ends()[i]});
      prefix.push_back(prefix.back() * kBase + hash_of(text, words.back()));
    }
    for (size_t last = done; last < words.size(); ++last) {
      for (const uint32_t length : lengths_) {
        if (last + 1 < length) break;
        const size_t first = last + 1 - length;
        const uint64_t key = key_of(prefix[last + 1] - prefix[first] * powers_[length], length);
        if (!maybe(key)) continue;
        const auto [from, to] = by_key_.equal_range(key);
        for (auto at = from; at != to; ++at) {
          const Pattern& pattern = patterns_[at->second];
          const std::string here = pattern.whole ? normalized(text, words[first].begin, words[last].end)
                                                 : joined_words(text, &words[first], length);
          if (here != pattern.canonical) continue;
          for (const uint32_t entry : pattern.entries) {
            runs.push_back({first_word + first, length, words[first].begin, words[last].end, entry});
          }
        }
      }
    }
    const size_t keep = std::min<size_t>(words.size(), n_);
    const size_t drop = words.size() - keep;
    words.erase(words.begin(), words.begin() + static_cast<ptrdiff_t>(drop));
    prefix.erase(prefix.begin(), prefix.begin() + static_cast<ptrdiff_t>(drop));
    first_word += drop;
    done = words.size();
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
