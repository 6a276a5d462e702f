"""Quality rules: two published sets for code, one for prose, each a dataclass of named thresholds.

A rule measures one figure of a document and holds it against its limit. Rules run in the order in which they stand
here; the first that fails is the reason.
"""

from __future__ import annotations

import re
import string
import symtable
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from typing import Any, NamedTuple

from mify.curation.languages import DATA, MARKUP_AND_DATA, PROSE


class Finding(NamedTuple):
    """What a rule found: its name, the value it measured, the limit it holds, and whether the document passes."""

    rule: str
    value: float | int | str
    limit: float | int | str
    passed: bool = False


@dataclass(frozen=True)
class StarCoder2Rules:
    """The filters of StarCoder2 and The Stack v2 (arXiv 2402.19173, section 2.3), for every language.

    Args:
        max_lines: lines of a file.
        max_mean_line_length, max_line_length: characters; not for markup and data.
        max_markup_line_length: characters, for markup and data.
        min_alphabetic_fraction: letters of all characters.
        max_encoded_run: characters of one run of base64, hexadecimal or \\u escapes.
        max_encoded_fraction: such runs of all characters.
        max_data_lines: lines of a data format (JSON, YAML, CSV, ...).
        min_html_text, min_html_text_fraction: visible characters of an HTML page.
    """

    enabled: bool = True
    max_lines: int = 100_000
    max_mean_line_length: float = 100.0
    max_line_length: int = 1_000
    max_markup_line_length: int = 100_000
    min_alphabetic_fraction: float = 0.25
    max_encoded_run: int = 1_024
    max_encoded_fraction: float = 0.5
    max_data_lines: int = 512
    min_html_text: int = 100
    min_html_text_fraction: float = 0.2


@dataclass(frozen=True)
class OpenCoderPythonRules:
    """OpenCoder's filters for Python (arXiv 2411.04905, appendix A). Fractions of lines are of the non-empty ones.

    Imports, `pass`, `assert` and `print` are counted where a line is such a statement; OpenCoder counts the substring,
    which also meets "password" and "important" in prose. Its 50% of letters is left to StarCoder2's 25%: it took a
    tenth of real packages' code, `sympy/core/add.py` among it.
    """

    enabled: bool = True
    min_lines: int = 10
    max_lines: int = 100_000
    min_words: int = 30
    min_mean_line_length: float = 5.0
    max_digit_fraction: float = 0.2
    max_whitespace_fraction: float = 0.5
    max_hex_word_fraction: float = 0.4
    max_duplicate_line_fraction: float = 0.7
    max_assert_fraction: float = 0.4
    max_import_fraction: float = 0.3
    max_pass_fraction: float = 0.05
    max_print_fraction: float = 0.4
    max_function_fraction: float = 0.2
    must_parse: bool = True


@dataclass(frozen=True)
class ProseRules:
    """For documentation: long enough to say something, made of words, not of repeated lines.

    Gopher's measures (arXiv 2112.11446, table A1) with limits of our own. Repetition is counted by characters: by
    lines, the headings of docstrings ("Parameters", "Returns") would weigh as much as a paragraph; and at Gopher's
    0.20 for web pages, the reference of networkx falls, which repeats a parameter wherever it is taken. The letters'
    fraction: tables and lists of names have fewer letters than prose, lists of numbers and checksums fewer still.
    """

    enabled: bool = True
    min_characters: int = 200
    min_alphabetic_fraction: float = 0.5
    max_mean_word_length: float = 12.0
    max_duplicate_character_fraction: float = 0.35


@dataclass(frozen=True)
class QualityRules:
    """The sets in the order in which they are asked."""

    starcoder2: StarCoder2Rules = StarCoder2Rules()
    opencoder_python: OpenCoderPythonRules = OpenCoderPythonRules()
    prose: ProseRules = ProseRules()


def quality_finding(text: str, language: str, rules: QualityRules) -> Finding | None:
    """The first rule that a document fails, None where it passes all."""
    return next((finding for finding in quality_findings(text, language, rules) if not finding.passed), None)


def quality_findings(text: str, language: str, rules: QualityRules) -> Iterator[Finding]:
    """Every rule that is asked of a document of this language, with its figure; each measured when it is reached."""
    counts = _Counts(text)
    if rules.starcoder2.enabled:
        yield from _starcoder2(counts, language, rules.starcoder2)
    if rules.opencoder_python.enabled and language == "python":
        yield from _opencoder_python(counts, rules.opencoder_python)
    if rules.prose.enabled and language in PROSE:
        yield from _prose(counts, rules.prose)


def _at_most(rule: str, value: float, limit: float) -> Finding:
    return Finding(rule, _shown(value), limit, value <= limit)


def _at_least(rule: str, value: float, limit: float) -> Finding:
    return Finding(rule, _shown(value), limit, value >= limit)


def _shown(value: float) -> float:
    return value if isinstance(value, int) else round(value, 4)


class _Counts:
    """What several rules measure, each computed once and only where a rule asks."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.size = max(1, len(text))

    @cached_property
    def encoded(self) -> bytes:
        return self.text.encode("utf-8")

    @cached_property
    def lines(self) -> list[str]:
        lines = self.text.split("\n")
        return lines[:-1] if lines and not lines[-1] else lines

    @cached_property
    def stripped(self) -> list[str]:
        """The non-empty lines without their indentation."""
        return [line for line in map(str.strip, self.lines) if line]

    @cached_property
    def alphabetic(self) -> float:
        letters = len(self.encoded) - len(self.encoded.translate(None, string.ascii_letters.encode()))
        if not self.text.isascii():
            letters += sum(map(str.isalpha, _NOT_ASCII.findall(self.text)))
        return letters / self.size

    @cached_property
    def digits(self) -> float:
        return (len(self.encoded) - len(self.encoded.translate(None, b"0123456789"))) / self.size

    @cached_property
    def whitespace(self) -> float:
        return (len(self.encoded) - len(self.encoded.translate(None, b" \t\n\r\v\f"))) / self.size

    @cached_property
    def duplicate_lines(self) -> float:
        return 1.0 - len(set(self.stripped)) / max(1, len(self.stripped))

    def fraction_of_lines(self, prefixes: tuple[str, ...]) -> float:
        return sum(line.startswith(prefixes) for line in self.stripped) / max(1, len(self.stripped))


_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def _starcoder2(counts: _Counts, language: str, rules: StarCoder2Rules) -> Iterator[Finding]:
    lines = counts.lines
    yield _at_most("starcoder2/max_lines", len(lines), rules.max_lines)
    longest = max(map(len, lines), default=0)
    if language in MARKUP_AND_DATA:
        yield _at_most("starcoder2/max_markup_line_length", longest, rules.max_markup_line_length)
    else:
        yield _at_most("starcoder2/max_line_length", longest, rules.max_line_length)
        mean = sum(map(len, lines)) / max(1, len(lines))
        yield _at_most("starcoder2/max_mean_line_length", mean, rules.max_mean_line_length)
    yield _at_least("starcoder2/min_alphabetic_fraction", counts.alphabetic, rules.min_alphabetic_fraction)
    run, total = _encoded_data(counts)
    yield _at_most("starcoder2/max_encoded_run", run, rules.max_encoded_run)
    yield _at_most("starcoder2/max_encoded_fraction", total / counts.size, rules.max_encoded_fraction)
    if language in DATA:
        yield _at_most("starcoder2/max_data_lines", len(lines), rules.max_data_lines)
    if language == "html":
        visible = _visible_characters(counts.text)
        yield _at_least("starcoder2/min_html_text", visible, rules.min_html_text)
        yield _at_least("starcoder2/min_html_text_fraction", visible / counts.size, rules.min_html_text_fraction)


# The three patterns of StarCoder2.
_BASE64 = re.compile(r"[a-zA-Z0-9+/\n=]{64,}")
_HEX = re.compile(r"(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,|\b\s*)){8,}")
_UNICODE = re.compile(r"(?:\\u[0-9a-fA-F]{4}){8,}")


def _class_table(characters: str) -> bytes:
    return bytes(1 if chr(byte) in characters else 0 for byte in range(256))


_BASE64_CLASS = _class_table(string.ascii_letters + string.digits + "+/\n=")
_HEX_CLASS = _class_table(string.hexdigits + "xX\\, \t\n\r")


def _encoded_data(counts: _Counts) -> tuple[int, int]:
    """The longest run of encoded data and the sum of all, in characters; of the three kinds, the greater.

    The patterns run at 20 to 35 MB/s, byte translation at 400: so each is asked only where it can matter. A run of
    hexadecimal matters from half a file (then digits are well above 5%) or from 1,024 characters on.
    """
    run = total = 0
    patterns = []
    if _has_run(counts.encoded, _BASE64_CLASS, 64):
        patterns.append(_BASE64)
    if counts.digits > 0.05 or _has_run(counts.encoded, _HEX_CLASS, 512):
        patterns.append(_HEX)
    if "\\u" in counts.text:
        patterns.append(_UNICODE)
    for pattern in patterns:
        lengths = [match.end() - match.start() for match in pattern.finditer(counts.text)]
        run, total = max(run, max(lengths, default=0)), max(total, sum(lengths))
    return run, total


def _has_run(encoded: bytes, table: bytes, length: int) -> bool:
    return b"\x01" * length in encoded.translate(table)


class _Visible(HTMLParser):
    """Counts the characters a reader would see."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = 0
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style") and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.characters += len(" ".join(data.split()))


def _visible_characters(text: str) -> int:
    parser = _Visible()
    try:
        parser.feed(text)
    except (AssertionError, ValueError):
        # html.parser gives up on some malformed declarations: what it read until then counts.
        return parser.characters
    return parser.characters


_HEX_WORD = re.compile(r"\b(?:0x)?(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{8,}\b")
_WORDS = re.compile(r"\w+")


def _opencoder_python(counts: _Counts, rules: OpenCoderPythonRules) -> Iterator[Finding]:
    text, size = counts.text, counts.size
    yield _at_least("opencoder_python/min_lines", len(counts.lines), rules.min_lines)
    yield _at_most("opencoder_python/max_lines", len(counts.lines), rules.max_lines)
    # Counting all words of a long file is needless: 30 words fit in any 4,096 characters that are not blank.
    words = len(_WORDS.findall(text, 0, 4096))
    if words < rules.min_words:
        words = len(_WORDS.findall(text))
    yield _at_least("opencoder_python/min_words", words, rules.min_words)
    mean = sum(map(len, counts.lines)) / max(1, len(counts.lines))
    yield _at_least("opencoder_python/min_mean_line_length", mean, rules.min_mean_line_length)
    yield _at_most("opencoder_python/max_digit_fraction", counts.digits, rules.max_digit_fraction)
    yield _at_most("opencoder_python/max_whitespace_fraction", counts.whitespace, rules.max_whitespace_fraction)
    duplicates, passes = counts.duplicate_lines, counts.stripped.count("pass") / max(1, len(counts.stripped))
    yield _at_most("opencoder_python/max_duplicate_line_fraction", duplicates, rules.max_duplicate_line_fraction)
    fraction = counts.fraction_of_lines
    yield _at_most("opencoder_python/max_assert_fraction", fraction(_ASSERT), rules.max_assert_fraction)
    yield _at_most("opencoder_python/max_import_fraction", fraction(("import ", "from ")), rules.max_import_fraction)
    yield _at_most("opencoder_python/max_pass_fraction", passes, rules.max_pass_fraction)
    yield _at_most("opencoder_python/max_print_fraction", fraction(("print(", "print ")), rules.max_print_fraction)
    functions = fraction(("def ", "async def "))
    yield _at_most("opencoder_python/max_function_fraction", functions, rules.max_function_fraction)
    if counts.digits > 0.02:
        hex_words = sum(map(len, _HEX_WORD.findall(text))) / size
        yield _at_most("opencoder_python/max_hex_word_fraction", hex_words, rules.max_hex_word_fraction)
    if rules.must_parse:
        problem = syntax_problem(text)
        yield Finding("opencoder_python/must_parse", problem or "parses", "parses", problem is None)


_ASSERT = ("assert ", "assert(", "self.assert")


def syntax_problem(text: str) -> str | None:
    """Why Python text does not parse under this interpreter's grammar, None where it does.

    `symtable` runs the same parser as `ast.parse` and the scoping rules, without building a tree of Python objects:
    5.7 MB/s against 3.6.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            symtable.symtable(text, "document", "exec")
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _prose(counts: _Counts, rules: ProseRules) -> Iterator[Finding]:
    yield _at_least("prose/min_characters", len(counts.text.strip()), rules.min_characters)
    yield _at_least("prose/min_alphabetic_fraction", counts.alphabetic, rules.min_alphabetic_fraction)
    words = counts.text.split()
    mean = sum(map(len, words)) / max(1, len(words))
    yield _at_most("prose/max_mean_word_length", mean, rules.max_mean_word_length)
    repeated = 1.0 - sum(map(len, set(counts.stripped))) / max(1, sum(map(len, counts.stripped)))
    limit = rules.max_duplicate_character_fraction
    yield _at_most("prose/max_duplicate_character_fraction", repeated, limit)


_MARKERS = (
    "auto-generated", "autogenerated", "automatically generated", "generated automatically", "this file is generated",
    "generated by the protocol buffer compiler", "@generated",
)  # fmt: skip


def generated_marker(text: str) -> str | None:
    """The phrase in the first five lines by which a file says that a program wrote it, None where none does.

    The phrases are StarCoder2's, with those of protoc and of Meta's tools, which its go-enry step finds.
    """
    end = -1
    for _ in range(5):
        end = text.find("\n", end + 1)
        if end < 0:
            break
    head = (text if end < 0 else text[:end]).lower()
    return next((marker for marker in _MARKERS if marker in head), None)


def content_problem(text: str, language: str) -> tuple[str, dict[str, Any]] | None:
    """Why a text is not what its name says: control characters, or XML under a name of another language."""
    if "\x00" in text:
        return "binary", {"nul_at": text.index("\x00")}
    if language not in ("xml", "html", "text", "unknown") and text.lstrip()[:5].lower() == "<?xml":
        return "xml under another name", {"language": language, "begins": text.lstrip()[:40]}
    return None
