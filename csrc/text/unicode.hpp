// Unicode as the tokenizer needs it: UTF-8 decoding, Python's `\w`, simple lower-casing. One pinned Unicode version.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mify {

// The version of the Unicode database behind the tables, e.g. "14.0.0". Stored with signatures.
const char* unicode_version();

// 0x110000 bits: bit c is set where code point c is a word character (alphanumeric or underscore).
const uint64_t* word_bitmap();

// The simple lower-case mapping of a code point; itself where it has none.
uint32_t to_lower(uint32_t code);

struct CodePoint {
  uint32_t value;
  uint32_t length;  // in bytes; 0 where the bytes at hand are not UTF-8
};

// Decodes the code point at `at` (at < end). Overlong forms, surrogates, values past U+10FFFF and cut sequences are
// invalid. A caller steps one byte over an invalid one: continuation bytes never begin a valid sequence, so the bytes
// that count as invalid are the same for any way of resuming.
CodePoint decode_utf8(const uint8_t* at, const uint8_t* end);

// Writes `code` as UTF-8 to `out` (room for 4 bytes) and returns the length.
uint32_t encode_utf8(uint32_t code, uint8_t* out);

}  // namespace mify
