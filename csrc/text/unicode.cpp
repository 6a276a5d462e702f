#include "text/unicode.hpp"

#include <algorithm>
#include <iterator>
#include <vector>

namespace mify {
namespace {

#include "text/unicode_tables.inc"

constexpr size_t kCodePoints = 0x110000;

}  // namespace

const char* unicode_version() {
  return kUnicodeVersion;
}

const uint64_t* word_bitmap() {
  static const std::vector<uint64_t> bitmap = [] {
    std::vector<uint64_t> bits(kCodePoints / 64);
    for (const WordRange& range : kWordRanges) {
      for (uint32_t code = range.first; code <= range.last; ++code) bits[code / 64] |= uint64_t{1} << (code % 64);
    }
    return bits;
  }();
  return bitmap.data();
}

uint32_t to_lower(uint32_t code) {
  const LowerRange* range = std::upper_bound(std::begin(kLowerRanges), std::end(kLowerRanges), code,
                                             [](uint32_t c, const LowerRange& r) { return c < r.first; });
  if (range == std::begin(kLowerRanges)) return code;
  --range;
  if (code > range->last || (code - range->first) % range->stride != 0) return code;
  return code + static_cast<uint32_t>(range->delta);
}

CodePoint decode_utf8(const uint8_t* at, const uint8_t* end) {
  const size_t left = static_cast<size_t>(end - at);
  const auto continuation = [at](size_t i) { return (at[i] & 0xC0) == 0x80; };
  const uint32_t lead = at[0];
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xC2) return {0, 0};
  if (lead < 0xE0) {
    if (left < 2 || !continuation(1)) return {0, 0};
    return {(lead & 0x1F) << 6 | (at[1] & 0x3Fu), 2};
  }
  if (lead < 0xF0) {
    if (left < 3 || !continuation(1) || !continuation(2)) return {0, 0};
    const uint32_t code = (lead & 0x0F) << 12 | (at[1] & 0x3Fu) << 6 | (at[2] & 0x3Fu);
    if (code < 0x800 || (code >= 0xD800 && code <= 0xDFFF)) return {0, 0};
    return {code, 3};
  }
  if (lead < 0xF5) {
    if (left < 4 || !continuation(1) || !continuation(2) || !continuation(3)) return {0, 0};
    const uint32_t code = (lead & 0x07) << 18 | (at[1] & 0x3Fu) << 12 | (at[2] & 0x3Fu) << 6 | (at[3] & 0x3Fu);
    if (code < 0x10000 || code > 0x10FFFF) return {0, 0};
    return {code, 4};
  }
  return {0, 0};
}

uint32_t encode_utf8(uint32_t code, uint8_t* out) {
  if (code < 0x80) {
    out[0] = static_cast<uint8_t>(code);
    return 1;
  }
  if (code < 0x800) {
    out[0] = static_cast<uint8_t>(0xC0 | code >> 6);
    out[1] = static_cast<uint8_t>(0x80 | (code & 0x3F));
    return 2;
  }
  if (code < 0x10000) {
    out[0] = static_cast<uint8_t>(0xE0 | code >> 12);
    out[1] = static_cast<uint8_t>(0x80 | (code >> 6 & 0x3F));
    out[2] = static_cast<uint8_t>(0x80 | (code & 0x3F));
    return 3;
  }
  out[0] = static_cast<uint8_t>(0xF0 | code >> 18);
  out[1] = static_cast<uint8_t>(0x80 | (code >> 12 & 0x3F));
  out[2] = static_cast<uint8_t>(0x80 | (code >> 6 & 0x3F));
  out[3] = static_cast<uint8_t>(0x80 | (code & 0x3F));
  return 4;
}

}  // namespace mify
