"""Quality rules: each at its limit, the shortcuts against the plain computation."""

from __future__ import annotations

import ast
import random
import re
import string
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mify.curation import quality
from mify.curation.quality import (
    OpenCoderPythonRules,
    ProseRules,
    QualityRules,
    StarCoder2Rules,
    content_problem,
    generated_marker,
    quality_finding,
    quality_findings,
    syntax_problem,
)

RULES = QualityRules()
GOOD = '''"""Reads words."""
import re


def words(text):
    """All words of a text, in their order, as they stand."""
    found = []
    for match in re.finditer(r"[a-z]+", text):
        if match.group() not in found:
            found.append(match.group())
    return found


class Reader:
    def __init__(self, path):
        self.path = path
        self.lines = []

    def read(self):
        with open(self.path) as file:
            for line in file:
                self.lines.append(line.strip())
        return self.lines
'''
PROSE = "The reader opens a file and keeps its lines without their ends.\n" + "\n".join(
    f"Paragraph {word} says how the {word} of a file is found and what is done where there is none."
    for word in ("beginning", "middle", "end", "length")
)


def rule(text: str, language: str = "python", rules: QualityRules = RULES) -> str | None:
    finding = quality_finding(text, language, rules)
    return None if finding is None else finding.rule


def test_ordinary_code_and_prose_pass() -> None:
    assert rule(GOOD) is None
    assert rule(PROSE, "markdown") is None
    assert rule(PROSE, "text") is None


@pytest.mark.parametrize("module", ["argparse", "json/decoder", "dataclasses", "heapq", "pathlib", "textwrap"])
def test_the_standard_library_passes(module: str) -> None:
    assert rule(Path(sysconfig.get_path("stdlib"), f"{module}.py").read_text(encoding="utf-8")) is None


INDENTED = "if x:\n" + (" " * 24 + "value_of_the_text\n") * 4 + (" " * 28 + "\n") * 20
NUMBERS = "".join(f"| {n}{n} | {n * 7} | abcdef{c} |\n" for n, c in enumerate(string.ascii_letters))
SETS = {"starcoder2": StarCoder2Rules, "opencoder_python": OpenCoderPythonRules, "prose": ProseRules}
SYNTAX = [
    "x = 1\n",
    "def f(:\n",
    "return 1\n",
    "x = 'a\n",
    "if x:\ny\n",
    "a b\n",
    "async def f():\n  await g()\n",
    "\0",
]
WIDE = "x = '" + "ab cd " * 20 + "'\n"


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("word one\n" * 100_001, "go", "starcoder2/max_lines"),
        (GOOD + "# " + "word " * 250 + "\n", "python", "starcoder2/max_line_length"),
        (WIDE * 40, "go", "starcoder2/max_mean_line_length"),
        ("# " + "word " * 25_000, "markdown", "starcoder2/max_markup_line_length"),
        ("1, 2, 3, 4\n" * 100, "c", "starcoder2/min_alphabetic_fraction"),
        (
            "x\n" * 20 + 'data = """\n' + ("QUJDREVGR0hJSktM" * 4 + "\n") * 20 + '"""\n',
            "go",
            "starcoder2/max_encoded_run",
        ),
        ("def f(): return 1\n" + "k = '" + "abcdEFGH" * 12 + "'\n", "go", "starcoder2/max_encoded_fraction"),
        ('key: "value"\n' * 513, "yaml", "starcoder2/max_data_lines"),
        (
            "<html><script>var x = 'only code in here';</script><p>Hi</p></html>\n" * 2,
            "html",
            "starcoder2/min_html_text",
        ),
        (
            "<p>word</p>" + "<b class='abcdefgh ijklmnop qrstuvwx'></b>" * 90 + "<p>" + "word " * 25 + "</p>",
            "html",
            "starcoder2/min_html_text_fraction",
        ),
        ("first = second\nthird = fourth\n", "python", "opencoder_python/min_lines"),
        ("x = y\n" * 10, "python", "opencoder_python/min_words"),
        ("ab;\ncd;\n" * 40, "python", "opencoder_python/min_mean_line_length"),
        (
            GOOD + "".join(f"value_{number} = 1{number}\n" for number in range(1000, 1200)),
            "python",
            "opencoder_python/max_digit_fraction",
        ),
        (GOOD + INDENTED, "python", "opencoder_python/max_whitespace_fraction"),
        (GOOD + "value = list(value)\n" * 80, "python", "opencoder_python/max_duplicate_line_fraction"),
        (
            GOOD + "".join(f"assert f{c}(value)\n" for c in string.ascii_letters),
            "python",
            "opencoder_python/max_assert_fraction",
        ),
        (
            "".join(f"import module_{c}\n" for c in string.ascii_letters) + GOOD,
            "python",
            "opencoder_python/max_import_fraction",
        ),
        (
            GOOD + "".join(f"class Error{c}(ValueError):\n    pass\n" for c in "abcdef"),
            "python",
            "opencoder_python/max_pass_fraction",
        ),
        (
            GOOD + "".join(f"print('{c}', value)\n" for c in string.ascii_letters),
            "python",
            "opencoder_python/max_print_fraction",
        ),
        (
            GOOD + "".join(f"def get_{c}(self):\n    return self.{c}\n" for c in string.ascii_letters),
            "python",
            "opencoder_python/max_function_fraction",
        ),
        (GOOD + "class Broken(:\n", "python", "opencoder_python/must_parse"),
        (GOOD + "print 'Python 2'\n", "python", "opencoder_python/must_parse"),
        ("Too short.\n", "text", "prose/min_characters"),
        (NUMBERS, "markdown", "prose/min_alphabetic_fraction"),
        ("Averyveryverylongwordthatsaysnothing " * 12, "text", "prose/max_mean_word_length"),
        (PROSE + "\n" + (PROSE.split("\n")[0] + "\n") * 8, "text", "prose/max_duplicate_character_fraction"),
    ],
)
def test_each_rule_names_itself(text: str, language: str, expected: str) -> None:
    assert rule(text, language) == expected


def test_hex_words_are_a_rule() -> None:
    words = "\n".join(f"x = 0xdeadbeef{i:08x}cafebabe{i:08x}feedface{i:06x}abcdef" for i in range(60))
    rules = replace(RULES, starcoder2=StarCoder2Rules(enabled=False))
    relaxed = replace(rules, opencoder_python=replace(RULES.opencoder_python, max_digit_fraction=1.0))
    assert rule(GOOD + words, rules=relaxed) == "opencoder_python/max_hex_word_fraction"


def test_every_rule_of_the_configuration_is_tested_above() -> None:
    named = {
        f"{group}/{name}"
        for group, cls in (
            ("starcoder2", StarCoder2Rules),
            ("opencoder_python", OpenCoderPythonRules),
            ("prose", ProseRules),
        )
        for name in cls.__dataclass_fields__
        if name != "enabled"
    }
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in sorted(named) if f'"{name}"' not in source] == []


def test_sets_can_be_switched_off_and_limits_moved() -> None:
    off = QualityRules(StarCoder2Rules(enabled=False), OpenCoderPythonRules(enabled=False), ProseRules(enabled=False))
    assert rule("", "python", off) is None
    assert rule("1 2 3", "text", off) is None
    loose = replace(RULES, opencoder_python=OpenCoderPythonRules(min_lines=1, min_words=1))
    assert rule("x = yes\ny = no\n", rules=loose) is None


def test_long_lines_are_legal_in_markup_and_data() -> None:
    line = "word " * 300
    assert rule(PROSE + line, "markdown") is None
    assert rule(PROSE + line, "go") == "starcoder2/max_line_length"


@pytest.mark.parametrize(
    "text",
    ["x = 1\n", "def f(:\n", "return 1\n", "x = 'a\n", "if x:\ny\n", "a b\n", "async def f():\n  await g()\n", "\0"],
)
def test_syntax_is_that_of_the_compiler(text: str) -> None:
    try:
        compile(text, "x", "exec", ast.PyCF_ONLY_AST)
        parses = True
    except (SyntaxError, ValueError):
        parses = False
    assert (syntax_problem(text) is None) is parses


def test_hostile_nesting_is_a_problem_and_not_a_crash() -> None:
    assert syntax_problem("(" * 100_000) is not None
    for text in ("-" * 100_000 + "1", "x" + ".a" * 100_000, "[" * 300 + "]" * 300, "if x:\n " * 200):
        assert isinstance(syntax_problem(text), str | None)


characters = st.text(st.sampled_from(string.ascii_letters + string.digits + "äßΩ中 \t\n_+-./\\,=xu"), max_size=300)


@settings(max_examples=300, deadline=None)
@given(characters)
def test_counts_are_those_of_plain_python(text: str) -> None:
    counts = quality._Counts(text)
    size = max(1, len(text))
    assert counts.alphabetic == sum(map(str.isalpha, text)) / size
    assert counts.digits == sum(character in string.digits for character in text) / size
    assert counts.whitespace == sum(character in " \t\n\r\v\f" for character in text) / size
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    assert counts.duplicate_lines == 1 - len(set(lines)) / max(1, len(lines))


def encoded_plain(text: str) -> tuple[int, int]:
    """All three patterns, asked always."""
    run = total = 0
    for pattern in (quality._BASE64, quality._HEX, quality._UNICODE):
        lengths = [len(match.group()) for match in pattern.finditer(text)]
        run, total = max([run, *lengths]), max(total, sum(lengths))
    return run, total


def test_encoded_data_is_found_as_without_shortcuts() -> None:
    """Wherever a rule would fire, the shortcuts give the same numbers."""
    generator = random.Random(0)
    pieces = [
        "def f(x):\n    return x\n",
        "0x1f, 0x2e, 0x3d, 0x4c, 0x5b, 0x6a, 0x79, 0x88,\n",
        "QUJD" * 20 + "\n",
        "\\u00e4\\u00f6\\u00fc\\u0041\\u0042\\u0043\\u0044\\u0045",
        "de ad be ef 01 23 45 67 89 ab cd ef\n",
        "\n\n",
    ]
    fired = 0
    for _ in range(400):
        kinds = generator.sample(pieces, generator.randint(1, 3))
        text = "".join(
            generator.choice(kinds) * generator.choice([1, 1, 5, 40]) for _ in range(generator.randint(1, 8))
        )
        expected = encoded_plain(text)
        limits = RULES.starcoder2
        if expected[0] > limits.max_encoded_run or expected[1] / len(text) > limits.max_encoded_fraction:
            fired += 1
            assert quality._encoded_data(quality._Counts(text)) == expected
    assert fired > 50


def test_hex_patterns_stay_linear() -> None:
    import time

    started = time.process_time()
    for text in ("ab " * 100_000, "0x12," * 60_000, "0x" * 100_000, "a" * 300_000, "\\x41" * 70_000 + "g"):
        quality._encoded_data(quality._Counts(text))
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "marker"),
    [
        ("# This file was auto-generated by x\nx = 1\n", "auto-generated"),
        ("\n\n// Code generated automatically. DO NOT EDIT\n", "generated automatically"),
        ("#\n# Generated by the protocol buffer compiler.\n", "generated by the protocol buffer compiler"),
        ("\n" * 4 + "# AUTOGENERATED", "autogenerated"),
        ("\n" * 5 + "# autogenerated", None),
        ("def generated(): pass\n", None),
        ("", None),
    ],
)
def test_generated_files_say_so_in_five_lines(text: str, marker: str | None) -> None:
    assert generated_marker(text) == marker


def test_content_that_contradicts_its_name() -> None:
    assert content_problem("a\0b", "python") == ("binary", {"nul_at": 1})
    found = content_problem("\n<?xml version='1.0'?><a/>", "python")
    assert found is not None
    assert found[0] == "xml under another name"
    assert content_problem("<?xml version='1.0'?><a/>", "xml") is None
    assert content_problem(GOOD, "python") is None


def test_alphabetic_counts_unicode_letters() -> None:
    assert re.fullmatch(r"\w+", "ΑΒΓ")
    assert quality._Counts("ΑΒΓ1").alphabetic == 0.75


def test_opencoder_bounds_the_lines_by_itself() -> None:
    long = "\n".join(f"value_{i} = compute(first, second)" for i in range(100_001))
    alone = replace(RULES, starcoder2=StarCoder2Rules(enabled=False), opencoder_python=OpenCoderPythonRules())
    assert rule(long, rules=alone) == "opencoder_python/max_lines"
    assert rule(long[: len(long) // 2], rules=alone) != "opencoder_python/max_lines"


def test_every_rule_of_a_document_is_told_in_order() -> None:
    findings = list(quality_findings(GOOD, "python", RULES))
    assert all(finding.passed for finding in findings)
    names = [finding.rule for finding in findings]
    assert names[0] == "starcoder2/max_lines"
    assert names[-1] == "opencoder_python/must_parse"
    assert len(names) == len(set(names)) >= 18
    broken = list(quality_findings("import os\nimport re\n", "python", RULES))
    failed = [finding.rule for finding in broken if not finding.passed]
    assert failed[0] == rule("import os\nimport re\n") == "opencoder_python/min_lines"
    assert {"opencoder_python/min_words", "opencoder_python/max_import_fraction"} <= set(failed)
    lines = next(finding for finding in broken if finding.rule == "opencoder_python/min_lines")
    assert (lines.value, lines.limit) == (2, 10)
