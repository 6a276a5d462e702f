#include "text/words.hpp"

#include <array>

#include "cpu.hpp"
#include "text/unicode.hpp"
#include "text/words_scan.hpp"

namespace mify {

#if defined(MIFY_X86)
size_t scan_words_avx2(ScanState& state);
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
  static uint32_t* write(uint64_t bits, uint32_t base, uint32_t* out) {
    for (; bits != 0; bits &= bits - 1) *out++ = base + static_cast<uint32_t>(__builtin_ctzll(bits));
    return out;
  }
};

}  // namespace

WordScanner::WordScanner(std::string_view text) : scan_(scan_stretch<ScalarClassifier>) {
#if defined(MIFY_X86)
  if (cpu_features().avx2) scan_ = scan_words_avx2;
#endif
  reset(text);
}

void WordScanner::reset(std::string_view text) {
  state_.text = reinterpret_cast<const uint8_t*>(text.data());
  state_.size = text.size();
  state_.position = state_.stretch = state_.first_begin = state_.open_begin = state_.invalid = 0;
  state_.in_word = state_.high = state_.open_high = state_.carry_is_word = false;
  state_.carry = 0;
}

uint64_t resolve_non_ascii(ScanState& state, uint64_t word, uint64_t high, size_t at) {
  static const uint64_t* const bitmap = word_bitmap();
  if (state.carry > 0) {
    const uint64_t bits = (uint64_t{1} << state.carry) - 1;
    if (state.carry_is_word) word |= bits;
    high &= ~bits;
    state.carry = 0;
  }
  while (high != 0) {
    const unsigned bit = static_cast<unsigned>(__builtin_ctzll(high));
    const CodePoint code = decode_utf8(state.text + at + bit, state.text + state.size);
    if (code.length == 0) {
      ++state.invalid;
      high &= high - 1;
      continue;
    }
    const bool is_word = (bitmap[code.value / 64] >> (code.value % 64) & 1) != 0;
    const unsigned stop = bit + code.length;
    uint64_t bits = ~uint64_t{0} << bit;
    if (stop < 64) {
      bits &= (uint64_t{1} << stop) - 1;
    } else {
      state.carry = stop - 64;
      state.carry_is_word = is_word;
    }
    if (is_word) word |= bits;
    high &= ~bits;
  }
  return word;
}

}  // namespace mify
