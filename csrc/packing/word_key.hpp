// Pre-tokens as 64-bit keys, by which tables of them are looked up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace mify {

inline constexpr uint64_t kOdd = 0x9E3779B97F4A7C15;
// Of words up to this size the key is the word itself, so that key and size need no comparison of bytes after them.
inline constexpr size_t kInlineWord = 8;

// The `size` (at most eight) bytes at `from` as a number.
inline uint64_t load_bytes(const char* from, size_t size) {
  uint64_t bytes = 0;
  if (size == 8) {
    std::memcpy(&bytes, from, 8);
  } else if (size >= 4) {
    uint32_t low, high;
    std::memcpy(&low, from, 4);
    std::memcpy(&high, from + size - 4, 4);
    bytes = low | uint64_t{high} << (8 * (size - 4));
  } else if (size > 0) {
    const auto byte = [from](size_t at) { return uint64_t{static_cast<uint8_t>(from[at])}; };
    bytes = byte(0) | byte(size / 2) << (8 * (size / 2)) | byte(size - 1) << (8 * (size - 1));
  }
  return bytes;
}

inline uint64_t word_key(std::string_view word) {
  if (word.size() <= kInlineWord) return load_bytes(word.data(), word.size());
  uint64_t hash = 0;
  for (size_t at = 0; at + 8 < word.size(); at += 8) {
    hash = (hash ^ load_bytes(word.data() + at, 8)) * kOdd;
    hash ^= hash >> 32;
  }
  hash = (hash ^ load_bytes(word.data() + word.size() - 8, 8)) * kOdd;
  return hash ^ hash >> 29;
}

// For tables of 2^(64 - shift) slots.
inline size_t word_slot(uint64_t key, size_t size, int shift) {
  return static_cast<size_t>((key + size * 0xD6E8FEB86659FD93) * kOdd >> shift);
}

}  // namespace mify
