#include "text/words.hpp"

#include <array>

#include "cpu.hpp"
#include "text/unicode.hpp"
#include "text/words_scan.hpp"

namespace mify {

#if defined(MIFY_X86)
size_t scan_words_avx2(WordScanner& scanner);
#endif

namespace {

constexpr std::array<uint8_t, 256> kWordByte = [] {
  std::array<uint8_t, 256> table{};
  for (int c = 0; c < 128; ++c) {
    table[static_cast<size_t>(c)] =
        (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
  }
  return table;
}();

struct ScalarClassifier {
  static void classify(const uint8_t* block, uint64_t* word, uint64_t* high) {
    uint64_t w = 0, h = 0;
    for (unsigned i = 0; i < 64; ++i) {
      w |= uint64_t{kWordByte[block[i]]} << i;
      h |= uint64_t{block[i]} >> 7 << i;
    }
    *word = w;
    *high = h;
  }
  static size_t* write(uint64_t bits, size_t base, size_t* out) {
    for (; bits != 0; bits &= bits - 1) *out++ = base + static_cast<size_t>(__builtin_ctzll(bits));
    return out;
  }
};

}  // namespace

WordScanner::WordScanner(std::string_view text) : bitmap_(word_bitmap()), scan_(scan_stretch<ScalarClassifier>) {
#if defined(MIFY_X86)
  if (cpu_features().avx2) scan_ = scan_words_avx2;
#endif
  reset(text);
}

void WordScanner::reset(std::string_view text) {
  text_ = reinterpret_cast<const uint8_t*>(text.data());
  size_ = text.size();
  position_ = 0;
  in_word_ = high_ = open_high_ = carry_is_word_ = false;
  open_begin_ = 0;
  carry_ = 0;
  invalid_ = 0;
}

size_t WordScanner::next() {
  return scan_(*this);
}

uint64_t WordScanner::resolve_non_ascii(uint64_t word, uint64_t high, size_t at) {
  if (carry_ > 0) {
    const uint64_t bits = (uint64_t{1} << carry_) - 1;
    if (carry_is_word_) word |= bits;
    high &= ~bits;
    carry_ = 0;
  }
  while (high != 0) {
    const unsigned bit = static_cast<unsigned>(__builtin_ctzll(high));
    const CodePoint code = decode_utf8(text_ + at + bit, text_ + size_);
    if (code.length == 0) {
      ++invalid_;
      high &= high - 1;
      continue;
    }
    const bool is_word = (bitmap_[code.value / 64] >> (code.value % 64) & 1) != 0;
    const unsigned stop = bit + code.length;
    uint64_t bits = ~uint64_t{0} << bit;
    if (stop < 64) {
      bits &= (uint64_t{1} << stop) - 1;
    } else {
      carry_ = stop - 64;
      carry_is_word_ = is_word;
    }
    if (is_word) word |= bits;
    high &= ~bits;
  }
  return word;
}

}  // namespace mify
