#include "packing/pre_tokenizer.hpp"

namespace mify {

// Where the characters of one class that stand at `at` end.
size_t PreTokenizer::run(size_t at, CharacterClass kind) {
  while (more(at)) {
    const uint8_t byte_class = classes_.of_byte(text_[at]);
    if (byte_class == kind) {
      ++at;
    } else if (byte_class != CharacterClasses::kNotAscii) {
      break;
    } else {
      const Seen seen = see(at);
      if (seen.kind != kind) break;
      at += seen.size;
    }
  }
  return at;
}

size_t PreTokenizer::others_and_line_breaks(size_t at) {
  at = run(at, kOther);
  while (more(at) && is_line_break(text_[at])) ++at;
  return at;
}

// A run of white space from `at`: to its last line break if it has one; else, before something, all but its last
// character; a run of one, or one that ends the text, whole.
size_t PreTokenizer::white_space(size_t at) {
  size_t last = at, after_line_break = 0, here = at;
  while (more(here)) {
    const Seen seen = see(here);
    if (seen.kind != kSpace) break;
    last = here;
    here += seen.size;
    if (is_line_break(seen.code)) after_line_break = here;
  }
  if (after_line_break != 0) return after_line_break;
  return here == end_ || last == at ? here : last;
}

size_t PreTokenizer::next(size_t at) {
  const Seen first = see(at);
  const size_t second = at + first.size;
  switch (first.kind) {
    case kLetter:
      return letters(second);
    case kNumber:
      return second;
    case kSpace: {
      if (is_line_break(first.code) || !more(second)) return white_space(at);
      const Seen after = see(second);
      if (after.kind == kLetter) return letters(second + after.size);
      if (first.code == ' ' && after.kind == kOther) return others_and_line_breaks(second);
      return white_space(at);
    }
    case kOther:
      break;
  }
  if (!more(second)) return second;
  const Seen after = see(second);
  if (after.kind != kLetter) return others_and_line_breaks(second);
  if (first.code == '\'' && after.code < 128) {
    const auto lower = [](uint32_t code) { return code | 32; };
    const uint32_t letter = lower(after.code);
    if (letter == 's' || letter == 't' || letter == 'm' || letter == 'd') return second + 1;
    if ((letter == 'r' || letter == 'v' || letter == 'l') && more(second + 1)) {
      const uint32_t next = lower(text_[second + 1]);
      if (next == (letter == 'l' ? uint32_t{'l'} : uint32_t{'e'})) return second + 2;
    }
  }
  return letters(second + after.size);
}

}  // namespace mify
