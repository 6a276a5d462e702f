// The scan loop, compiled once a classifier. Included only by words.cpp and words_avx2.cpp; it is in an unnamed
// namespace, so that no function compiled for AVX2 can be taken by the linker for the baseline.
#pragma once

#include <cstring>

#include "text/words.hpp"

namespace mify {
namespace {

// Classifier: static void classify(const uint8_t* block, uint64_t* word, uint64_t* high) over 64 bytes, and
// static uint32_t* write(uint64_t bits, uint32_t base, uint32_t* out): base + place of each set bit; it may write up to
// eight entries past the end that it returns.
template <class Classifier>
size_t scan_stretch(ScanState& s) {
  const size_t stretch = s.position;
  const size_t stop = s.size - stretch > kScanStretch ? stretch + kScanStretch : s.size;
  const bool carried = s.in_word;
  // Begins and ends of words alternate, so both are written as one list of edges.
  uint32_t* edge = s.edges;
  if (carried) *edge++ = 0;  // stands for open_begin
  uint64_t previous = carried ? 1 : 0;
  bool high_seen = carried && s.open_high;
  size_t at = stretch;
  for (; at < stop; at += 64) {
    uint64_t word, high;
    const size_t left = s.size - at;
    if (left >= 64) {
      Classifier::classify(s.text + at, &word, &high);
    } else {
      uint8_t block[64] = {};
      std::memcpy(block, s.text + at, left);
      Classifier::classify(block, &word, &high);
    }
    if (high != 0) {
      high_seen = true;
      word = resolve_non_ascii(s, word, high, at);
    }
    const uint64_t before = word << 1 | previous;
    previous = word >> 63;
    edge = Classifier::write(word ^ before, static_cast<uint32_t>(at - stretch), edge);
  }
  if (at >= s.size) {
    at = s.size;
    // A block that was cut short ends in zero bytes, which close the word; a full one may leave it open.
    if (previous != 0) *edge++ = static_cast<uint32_t>(at - stretch);
    previous = 0;
  }
  const size_t found = static_cast<size_t>(edge - s.edges) / 2;
  s.stretch = stretch;
  s.position = at;
  s.first_begin = carried ? s.open_begin : stretch + s.edges[0];
  s.high = s.open_high = high_seen;
  s.in_word = previous != 0;
  if (s.in_word && (found > 0 || !carried)) s.open_begin = stretch + s.edges[2 * found];
  return found;
}

}  // namespace
}  // namespace mify
