#include "text/word_hash.hpp"

#include "text/unicode.hpp"

namespace mify {

uint64_t hash_word_at_end(const uint8_t* word, size_t length, uint64_t fold) {
  if (length > 16) return hash_word(word, length, fold);
  uint8_t padded[16] = {};
  std::memcpy(padded, word, length);
  return hash_word(padded, length, fold);
}

uint64_t hash_lower_word(const uint8_t* word, size_t length) {
  const uint8_t* const end = word + length;
  uint64_t first[2] = {0, 0}, pending = 0, h = kS2;
  size_t total = 0;
  const auto flush = [&] {
    const size_t index = (total - 1) / 8;
    if (index < 2) first[index] = pending;
    h = mum(h ^ pending, kS1);
    pending = 0;
  };
  while (word < end) {
    const CodePoint code = decode_utf8(word, end);
    word += code.length;
    uint8_t bytes[4];
    const uint32_t count = encode_utf8(to_lower(code.value), bytes);
    for (uint32_t i = 0; i < count; ++i) {
      const uint8_t byte = bytes[i] < 0x80 ? bytes[i] | 0x20 : bytes[i];
      pending |= uint64_t{byte} << 8 * (total % 8);
      if (++total % 8 == 0) flush();
    }
  }
  if (total % 8 != 0) flush();
  return total <= 16 ? hash_short_word(first[0], first[1]) : mum(h ^ kS0, total ^ kS2);
}

}  // namespace mify
