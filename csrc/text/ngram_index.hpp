// An index of word n-grams: which stretches of a text also stand in one of a set of (benchmark) texts.
//
// Words are lower-cased. A text of at least n words is indexed by all its n-grams; a shorter one, of at least
// `min_words`, as one string that must appear whole, punctuation included and runs of white space counted as one space.
// A hash only proposes; every match is confirmed on the words themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mify {

struct NgramMatch {
  size_t begin, end;  // bytes of the text
  uint32_t entry;     // which added text
};

class NgramIndex {
 public:
  // n-grams with fewer than `min_named_words` words of two letters or more (runs of numbers and the alphabet, mostly)
  // are left out: they say nothing about where a text comes from. 1 <= min_words <= n.
  NgramIndex(uint32_t n, uint32_t min_words, uint32_t min_named_words);

  // Adds a text and returns its number, from 0.
  uint32_t add(std::string_view text);

  // The matched stretches, maximal for each entry, by begin, then entry.
  std::vector<NgramMatch> match(std::string_view text) const;

  uint64_t num_entries() const { return num_entries_; }
  uint64_t num_ngrams() const { return num_ngrams_; }              // distinct
  uint64_t num_short_texts() const { return num_short_; }          // indexed as whole strings
  uint64_t num_unindexed_texts() const { return num_unindexed_; }  // with nothing that could be indexed
  uint64_t num_unnamed_ngrams() const { return num_unnamed_; }     // left out by min_named_words

 private:
  struct Pattern {
    std::string canonical;  // the words joined by spaces, or the normalized string
    bool whole;             // a whole short string
    std::vector<uint32_t> entries;
  };
  struct Run {
    size_t first_word, num_words, begin, end;
    uint32_t entry;
  };

  // A set of keys that may say yes wrongly, about one time in sixteen.
  class Filter {
   public:
    bool maybe(uint64_t key) const { return (bits_[key >> 6 & mask_] >> (key & 63) & 1) != 0; }
    void add(uint64_t key);

   private:
    std::vector<uint64_t> keys_, bits_ = {0};
    uint64_t mask_ = 0;
  };

  void insert(uint32_t num_words, uint64_t hash, std::string canonical, bool whole, uint32_t entry);

  uint32_t n_, min_words_, min_named_words_;
  std::vector<uint64_t> powers_;         // B^0 … B^n
  std::vector<uint32_t> short_lengths_;  // lengths in words of whole strings, ascending
  std::vector<Pattern> patterns_;
  std::unordered_multimap<uint64_t, uint32_t> by_key_;
  Filter ngrams_, short_beginnings_;  // the latter: of the first min_words words of whole strings
  uint64_t num_entries_ = 0, num_ngrams_ = 0, num_short_ = 0, num_unindexed_ = 0, num_unnamed_ = 0;
};

}  // namespace mify
