// Words: the maximal runs of word characters (Python's `\w`, see unicode.hpp) of a UTF-8 text, found stretch by
// stretch. Bytes that are not UTF-8 separate words, as U+FFFD does in bytes.decode("utf-8", "replace").
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mify {

inline constexpr size_t kScanStretch = 4096;  // bytes looked at in one call, a multiple of 64

// What a scan has reached, for the scan loops (words_scan.hpp).
struct ScanState {
  const uint8_t* text = nullptr;
  size_t size = 0;
  size_t position = 0;     // where the next stretch begins
  size_t stretch = 0;      // where the last one began
  size_t first_begin = 0;  // where its first word begins, perhaps before it
  bool in_word = false;    // a word, begun at open_begin, reaches the position
  size_t open_begin = 0;
  bool high = false;           // a word of the last stretch may hold a byte >= 0x80
  bool open_high = false;      // the open word may
  uint32_t carry = 0;          // bytes from the position on that belong to a code point already decoded
  bool carry_is_word = false;  // which is a word character
  size_t invalid = 0;          // bytes so far that were not UTF-8
  // Begin and end of each word of the last stretch, from `stretch` on; writers may go eight entries past the end.
  uint32_t edges[kScanStretch + 1 + 8];
};

class WordScanner {
 public:
  static constexpr size_t kCapacity = kScanStretch / 2 + 1;  // words that one call can yield

  struct Word {
    size_t begin, end;  // bytes [begin, end) of the text
  };

  explicit WordScanner(std::string_view text);

  // Begins another text.
  void reset(std::string_view text);

  // Finds the words that end in the next stretch, word(0) … word(n - 1), and returns their number n, which may be 0
  // before the end; done() tells the end.
  size_t next() { return scan_(state_); }
  bool done() const { return state_.position == state_.size && !state_.in_word; }
  Word word(size_t i) const {
    return {i == 0 ? state_.first_begin : state_.stretch + state_.edges[2 * i],
            state_.stretch + state_.edges[2 * i + 1]};
  }

  // The same as numbers for inner loops: word i > 0 is bytes [edges()[2 i], edges()[2 i + 1]) from stretch() on.
  const uint32_t* edges() const { return state_.edges; }
  size_t stretch() const { return state_.stretch; }

  const uint8_t* text() const { return state_.text; }
  size_t size() const { return state_.size; }
  bool may_hold_non_ascii() const { return state_.high; }
  size_t invalid_bytes() const { return state_.invalid; }

 private:
  size_t (*scan_)(ScanState&);  // scalar or AVX2, chosen once
  ScanState state_;
};

// The word mask of the up to 64 bytes at `at`, given the bits of ASCII word bytes and of bytes >= 0x80.
uint64_t resolve_non_ascii(ScanState& state, uint64_t word, uint64_t high, size_t at);

// [m.span() for m in re.finditer(r"\w+", text)], in bytes.
template <class Emit>
void for_each_word(std::string_view text, Emit&& emit) {
  WordScanner scanner(text);
  while (!scanner.done()) {
    const size_t found = scanner.next();
    for (size_t i = 0; i < found; ++i) emit(scanner.word(i).begin, scanner.word(i).end);
  }
}

}  // namespace mify
