// The scan loop, compiled once a classifier. Included only by words.cpp and words_avx2.cpp; everything is in an unnamed
// namespace, so that no function compiled for AVX2 can be taken by the linker for the baseline.
#pragma once

#include <cstring>

#include "text/words.hpp"

namespace mify {

struct ScanAccess {
  static const uint8_t* text(const WordScanner& s) { return s.text_; }
  static size_t size(const WordScanner& s) { return s.size_; }
  static size_t& position(WordScanner& s) { return s.position_; }
  static bool& in_word(WordScanner& s) { return s.in_word_; }
  static bool& high(WordScanner& s) { return s.high_; }
  static bool& open_high(WordScanner& s) { return s.open_high_; }
  static size_t& open_begin(WordScanner& s) { return s.open_begin_; }
  static uint32_t carry(const WordScanner& s) { return s.carry_; }
  static size_t* begins(WordScanner& s) { return s.begins_; }
  static size_t* ends(WordScanner& s) { return s.ends_; }
};

namespace {

// Classifier: static void classify(const uint8_t* block, uint64_t* word, uint64_t* high) over 64 bytes, and
// static size_t* write(uint64_t bits, size_t base, size_t* out), which may write up to 8 entries past the end.
template <class Classifier>
size_t scan_stretch(WordScanner& s) {
  using A = ScanAccess;
  const uint8_t* text = A::text(s);
  const size_t size = A::size(s);
  size_t at = A::position(s);
  const size_t stop = size - at > WordScanner::kStretch ? at + WordScanner::kStretch : size;
  size_t* begin = A::begins(s);
  size_t* end = A::ends(s);
  uint64_t previous = A::in_word(s) ? 1 : 0;
  if (previous != 0) *begin++ = A::open_begin(s);
  bool high_seen = previous != 0 && A::open_high(s);
  for (; at < stop; at += 64) {
    uint64_t word, high;
    const size_t left = size - at;
    if (left >= 64) {
      Classifier::classify(text + at, &word, &high);
    } else {
      uint8_t block[64] = {};
      std::memcpy(block, text + at, left);
      Classifier::classify(block, &word, &high);
    }
    if (high != 0) {
      high_seen = true;
      word = s.resolve_non_ascii(word, high, at);
    }
    const uint64_t before = word << 1 | previous;
    previous = word >> 63;
    begin = Classifier::write(word & ~before, at, begin);
    end = Classifier::write(~word & before, at, end);
  }
  if (at >= size) {
    at = size;
    // A block that was cut short ends in zero bytes, which close the word; a full one may leave it open.
    if (previous != 0) *end++ = size;
    previous = 0;
  }
  const size_t found = static_cast<size_t>(end - A::ends(s));
  A::high(s) = high_seen;
  A::open_high(s) = high_seen;
  A::in_word(s) = previous != 0;
  if (previous != 0) A::open_begin(s) = A::begins(s)[found];
  A::position(s) = at;
  return found;
}

}  // namespace
}  // namespace mify
