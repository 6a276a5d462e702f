// Classes of characters as the qwen2 pre-tokenizer pattern asks for them, and UTF-8 one character at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mify {

enum CharacterClass : uint8_t { kOther = 0, kLetter = 1, kNumber = 2, kSpace = 3 };

// Two-stage table over all code points, built once from the runs in character_classes.inc.
class CharacterClasses {
 public:
  static const CharacterClasses& get();

  // The class of an ASCII byte; kNotAscii of any other.
  uint8_t of_byte(uint8_t byte) const { return bytes_[byte]; }
  static constexpr uint8_t kNotAscii = 4;

  CharacterClass of(uint32_t code) const {
    if (code < 128) return static_cast<CharacterClass>(bytes_[code]);
    return static_cast<CharacterClass>(code < 0x110000 ? blocks_[size_t{block_of_[code >> 8]} * 256 + (code & 255)]
                                                       : 0);
  }

 private:
  CharacterClasses();
  std::array<uint8_t, 256> bytes_;
  std::array<uint16_t, 0x1100> block_of_;
  std::vector<uint8_t> blocks_;
};

struct Character {
  uint32_t code;
  uint32_t size;  // bytes
};

inline bool is_continuation(uint8_t byte) {
  return (byte & 0xC0) == 0x80;
}
inline bool is_line_break(uint32_t code) {
  return code == '\n' || code == '\r';
}

// The character at text[at] of valid UTF-8; never reads at or beyond `end`.
inline Character character_at(const uint8_t* text, size_t at, size_t end) {
  const uint8_t lead = text[at];
  if (lead < 0x80) return {lead, 1};
  const uint32_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (at + size > end) return {0xFFFD, static_cast<uint32_t>(end - at)};
  uint32_t code = lead & (0xFF >> (size + 1));
  for (uint32_t i = 1; i < size; ++i) code = code << 6 | (text[at + i] & 0x3F);
  return {code, size};
}

}  // namespace mify
