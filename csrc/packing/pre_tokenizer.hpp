// The qwen2 pre-tokenizer pattern by hand, one pre-token at a time:
//
//   (?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N}
//   |  ?[^\s\p{L}\p{N}]+[\r\n]* | \s*[\r\n]+ | \s+(?!\S) | \s+
//
// Alternatives are tried in order; each is greedy. Every character begins one, so pre-tokens tile the text.
#pragma once

#include <cstddef>
#include <cstdint>

#include "packing/characters.hpp"

namespace mify {

class PreTokenizer {
 public:
  // `text` is valid UTF-8; [.., end) is taken for the whole of it.
  PreTokenizer(const uint8_t* text, size_t end) : text_(text), end_(end), classes_(CharacterClasses::get()) {}

  // Where the pre-token that begins at `at` (< end) ends.
  size_t next(size_t at);

  // Whether any answer so far depended on the text ending at `end`: with more text it might have been another.
  bool touched_end() const { return touched_end_; }

 private:
  struct Seen {
    uint32_t code;
    uint32_t size;
    CharacterClass kind;
  };
  Seen see(size_t at) const {
    const Character character = character_at(text_, at, end_);
    return {character.code, character.size, classes_.of(character.code)};
  }
  bool more(size_t at) {
    if (at < end_) return true;
    touched_end_ = true;
    return false;
  }
  size_t run(size_t at, CharacterClass kind);
  size_t letters(size_t at) { return run(at, kLetter); }
  size_t others_and_line_breaks(size_t at);
  size_t white_space(size_t at);

  const uint8_t* text_;
  size_t end_;
  const CharacterClasses& classes_;
  bool touched_end_ = false;
};

// Whether a pre-token always ends between two neighbouring characters, and does not depend on what follows them. Every
// alternative with letters ends in them; a number stands alone; white space other than line breaks only begins or fills
// an alternative; nothing but white space follows a line break. Twin of mify/data/fim.py:boundary_between.
inline bool always_part(uint32_t left, uint32_t right, const CharacterClasses& classes) {
  const CharacterClass before = classes.of(left), after = classes.of(right);
  if (is_line_break(left)) return after != kSpace;
  if (before == kSpace) return false;
  return before == kNumber || after == kNumber || (before == kLetter && after != kLetter) ||
         (after == kSpace && !is_line_break(right));
}

}  // namespace mify
