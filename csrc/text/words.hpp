// Words: the maximal runs of word characters (Python's `\w`, see unicode.hpp) of a UTF-8 text, found stretch by
// stretch. Bytes that are not UTF-8 separate words, as U+FFFD does in bytes.decode("utf-8", "replace").
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mify {

class WordScanner {
 public:
  static constexpr size_t kStretch = 4096;                // bytes looked at in one call, a multiple of 64
  static constexpr size_t kCapacity = kStretch / 2 + 16;  // words that one call can yield, with the writers' slack

  explicit WordScanner(std::string_view text);

  // Begins another text.
  void reset(std::string_view text);

  // Finds the words that end in the next stretch: word i is bytes [begins()[i], ends()[i]) of the text. Returns their
  // number, which may be 0 before the end; done() tells the end.
  size_t next();

  bool done() const { return position_ == size_ && !in_word_; }
  const size_t* begins() const { return begins_; }
  const size_t* ends() const { return ends_; }
  const uint8_t* text() const { return text_; }
  size_t size() const { return size_; }
  // Whether a word of the last call may hold a byte >= 0x80.
  bool may_hold_non_ascii() const { return high_; }
  // Bytes so far that were not UTF-8.
  size_t invalid_bytes() const { return invalid_; }

  // The word mask of up to 64 bytes that the two classifiers share; also the only place that decodes UTF-8.
  // `word` has the bits of ASCII word bytes, `high` those of bytes >= 0x80, at text position `at`.
  uint64_t resolve_non_ascii(uint64_t word, uint64_t high, size_t at);

 private:
  friend struct ScanAccess;

  const uint8_t* text_;
  size_t size_;
  size_t position_;
  bool in_word_;  // the byte before position_ is in a word, which began at open_begin_
  bool high_;
  bool open_high_;  // the open word, or the stretch it began in, holds a byte >= 0x80
  size_t open_begin_;
  uint32_t carry_;  // leading bytes of the next block that belong to a code point already decoded
  bool carry_is_word_;
  size_t invalid_;
  const uint64_t* bitmap_;
  size_t (*scan_)(WordScanner&);  // scalar or AVX2, chosen once
  size_t begins_[kCapacity];
  size_t ends_[kCapacity];
};

// [m.span() for m in re.finditer(r"\w+", text)], in bytes.
template <class Emit>
void for_each_word(std::string_view text, Emit&& emit) {
  WordScanner scanner(text);
  while (!scanner.done()) {
    const size_t found = scanner.next();
    for (size_t i = 0; i < found; ++i) emit(scanner.begins()[i], scanner.ends()[i]);
  }
}

}  // namespace mify
