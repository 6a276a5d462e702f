"""Writes unicode_tables.inc from the Unicode database of the Python that runs it.

    python csrc/text/make_unicode_tables.py > csrc/text/unicode_tables.inc

A word character is what Python's `\\w` matches in a `str`: alphanumeric code points and the underscore. Lower-casing is
the simple mapping, one code point to one (so U+0130 becomes U+0069, and a capital sigma is never made final).
The tables are pinned to one Unicode version, so that signatures do not change with the interpreter.
"""

from __future__ import annotations

import unicodedata

LAST = 0x10FFFF


def word_ranges() -> list[tuple[int, int]]:
    """Maximal ranges (first, last) of word characters."""
    ranges: list[tuple[int, int]] = []
    for code in range(LAST + 1):
        if not (chr(code).isalnum() or code == ord("_")):
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1] = (ranges[-1][0], code)
        else:
            ranges.append((code, code))
    return ranges


def lower_ranges() -> list[tuple[int, int, int, int]]:
    """Ranges (first, last, stride, delta): `first, first + stride, … last` become themselves plus delta."""
    ranges: list[tuple[int, int, int, int]] = []
    for code in range(LAST + 1):
        lower = ord(chr(code).lower()[0])
        delta = lower - code
        if delta == 0:
            continue
        if ranges:
            first, last, stride, previous = ranges[-1]
            step = code - last
            if delta == previous and (step == stride or (first == last and step <= 2)):
                ranges[-1] = (first, code, step, delta)
                continue
        ranges.append((code, code, 1, delta))
    return ranges


def main() -> None:
    print("// Written by make_unicode_tables.py; do not edit.")
    print(f'inline constexpr char kUnicodeVersion[] = "{unicodedata.unidata_version}";')
    print("struct WordRange {\n  uint32_t first, last;\n};")
    print("inline constexpr WordRange kWordRanges[] = {")
    for first, last in word_ranges():
        print(f"    {{{first:#x}, {last:#x}}},")
    print("};")
    print("struct LowerRange {\n  uint32_t first, last, stride;\n  int32_t delta;\n};")
    print("inline constexpr LowerRange kLowerRanges[] = {")
    for first, last, stride, delta in lower_ranges():
        print(f"    {{{first:#x}, {last:#x}, {stride}, {delta}}},")
    print("};")


if __name__ == "__main__":
    main()
