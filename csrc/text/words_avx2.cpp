// Compiled for AVX2 and BMI; runs only where cpu_features().avx2 holds. No standard library template is used here: an
// instantiation compiled for AVX2 could replace the baseline one at link time.
#include <immintrin.h>

#include "text/words_scan.hpp"

namespace mify {
namespace {

// The places of the set bits of a byte, and their number.
struct BitPlaces {
  alignas(64) uint8_t places[256][8];
  uint8_t count[256];
};
constexpr BitPlaces kBits = [] {
  BitPlaces bits{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (uint8_t place = 0; place < 8; ++place) {
      if ((byte >> place & 1) != 0) bits.places[byte][bits.count[byte]++] = place;
    }
  }
  return bits;
}();

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
  // Eight places at a time by table, without a branch: twice as fast on code as clearing the lowest bit again and
  // again, whose instructions each wait for the one before.
  static uint32_t* write(uint64_t bits, uint32_t base, uint32_t* out) {
    __m256i bases = _mm256_set1_epi32(static_cast<int>(base));
    for (int i = 0; i < 8; ++i) {
      const uint64_t byte = bits & 0xFF;
      const __m128i places = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kBits.places[byte]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_add_epi32(bases, _mm256_cvtepu8_epi32(places)));
      out += kBits.count[byte];
      bases = _mm256_add_epi32(bases, _mm256_set1_epi32(8));
      bits >>= 8;
    }
    return out;
  }
};

}  // namespace

size_t scan_words_avx2(ScanState& state) {
  return scan_stretch<Avx2Classifier>(state);
}

}  // namespace mify
