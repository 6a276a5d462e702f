// Compiled for AVX2 and BMI; runs only where cpu_features().avx2 holds. No standard library template is used here: an
// instantiation compiled for AVX2 could replace the baseline one at link time.
#include <immintrin.h>

#include "text/words_scan.hpp"

namespace mify {
namespace {

struct Avx2Classifier {
  static uint32_t word_bits(__m256i v) {
    // Signed comparisons: bytes >= 0x80 are negative and in no range.
    const __m256i folded = _mm256_or_si256(v, _mm256_set1_epi8(0x20));
    const __m256i letter = _mm256_and_si256(_mm256_cmpgt_epi8(folded, _mm256_set1_epi8('a' - 1)),
                                            _mm256_cmpgt_epi8(_mm256_set1_epi8('z' + 1), folded));
    const __m256i digit = _mm256_and_si256(_mm256_cmpgt_epi8(v, _mm256_set1_epi8('0' - 1)),
                                           _mm256_cmpgt_epi8(_mm256_set1_epi8('9' + 1), v));
    const __m256i underscore = _mm256_cmpeq_epi8(v, _mm256_set1_epi8('_'));
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_or_si256(_mm256_or_si256(letter, digit), underscore)));
  }
  static void classify(const uint8_t* block, uint64_t* word, uint64_t* high) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 32));
    *word = word_bits(a) | uint64_t{word_bits(b)} << 32;
    *high = static_cast<uint32_t>(_mm256_movemask_epi8(a)) | uint64_t{static_cast<uint32_t>(_mm256_movemask_epi8(b))}
                                                                 << 32;
  }
  // Eight entries without a branch, as most blocks of real text have at most eight words.
  static size_t* write(uint64_t bits, size_t base, size_t* out) {
    size_t* const end = out + _mm_popcnt_u64(bits);
    do {
      for (int i = 0; i < 8; ++i) {
        out[i] = base + _tzcnt_u64(bits);
        bits = _blsr_u64(bits);
      }
      out += 8;
    } while (bits != 0);
    return end;
  }
};

}  // namespace

size_t scan_words_avx2(WordScanner& scanner) {
  return scan_stretch<Avx2Classifier>(scanner);
}

}  // namespace mify
