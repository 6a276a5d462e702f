// The 64-bit hash of a word behind the fast shingle hash.
//
// It is a function of the word's canonical bytes: its UTF-8, and where words are lower-cased, the UTF-8 of the
// lower-cased word with '_' written as 0x7F (so that lower-casing an ASCII word is one OR with 0x20 a byte; no word
// character is 0x7F, so no two words meet).
//
//   length <= 16   mum(w0 ^ S0, w1 ^ S1)      w0, w1: bytes 0-7 and 8-15, little-endian, zero-padded
//   longer         h = S2; h = mum(h ^ w_i, S1) over all 8-byte words; mum(h ^ S0, length ^ S2)
//
// No word holds a zero byte, so padding hides no length.
#pragma once

#include <cstddef>
#include <cstdint>

#include "text/mix.hpp"

namespace mify {

inline constexpr uint64_t kS0 = 0xA0761D6478BD642Full, kS1 = 0xE7037ED1A0B428DBull, kS2 = 0x8EBC6AF09C88C6E3ull,
                          kS3 = 0x589965CC75374CC3ull;
inline constexpr uint64_t kLowerBits = 0x2020202020202020ull, kHighBits = 0x8080808080808080ull;

// Bytes 0-7 and 8-15 kept of a word of that length.
struct WordMasks {
  uint64_t low[17], high[17];
};
inline constexpr WordMasks kWordMasks = [] {
  WordMasks masks{};
  for (unsigned length = 0; length <= 16; ++length) {
    masks.low[length] = length >= 8 ? ~uint64_t{0} : (uint64_t{1} << 8 * length) - 1;
    masks.high[length] = length == 16 ? ~uint64_t{0} : length > 8 ? (uint64_t{1} << 8 * (length - 8)) - 1 : 0;
  }
  return masks;
}();

inline uint64_t hash_short_word(uint64_t w0, uint64_t w1) {
  return mum(w0 ^ kS0, w1 ^ kS1);
}

// `word` holds length bytes and is followed by at least 16 readable ones where length <= 16. fold is 0 or kLowerBits.
inline uint64_t hash_word(const uint8_t* word, size_t length, uint64_t fold) {
  if (length <= 16) {
    const uint64_t w0 = (load64(word) | fold) & kWordMasks.low[length];
    const uint64_t w1 = (load64(word + 8) | fold) & kWordMasks.high[length];
    return hash_short_word(w0, w1);
  }
  uint64_t h = kS2;
  size_t at = 0;
  for (; at + 8 <= length; at += 8) h = mum(h ^ (load64(word + at) | fold), kS1);
  if (at < length) {
    uint64_t last = 0;
    std::memcpy(&last, word + at, length - at);
    h = mum(h ^ ((last | fold) & kWordMasks.low[length - at]), kS1);
  }
  return mum(h ^ kS0, length ^ kS2);
}

inline bool is_ascii(const uint8_t* word, size_t length) {
  size_t at = 0;
  for (; at + 8 <= length; at += 8) {
    if ((load64(word + at) & kHighBits) != 0) return false;
  }
  for (; at < length; ++at) {
    if (word[at] >= 0x80) return false;
  }
  return true;
}

// Any word that lies in [.., end); slower, reads nothing past `end`.
uint64_t hash_word_at_end(const uint8_t* word, size_t length, uint64_t fold);

// A word with code points past ASCII, lower-cased code point by code point without a buffer of the word's size.
uint64_t hash_lower_word(const uint8_t* word, size_t length);

}  // namespace mify
