"""Languages by name and first line, named as their tokens are."""

from __future__ import annotations

import pytest

from mify.curation.languages import (
    _SUFFIXES,
    _TAGS,
    DATA,
    MARKUP_AND_DATA,
    PROSE,
    domain_of,
    is_binary_name,
    language_of,
)
from mify.special_tokens import LANGUAGES


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a/b.py", "python"), ("b.pyi", "python"), ("a.h", "c"), ("a.hpp", "cpp"), ("k.cu", "cuda"), ("m.R", "r"),
        ("Makefile", "makefile"), ("CMakeLists.txt", "cmake"), ("Dockerfile", "dockerfile"), ("README.md", "markdown"),
        ("doc.rst", "restructuredtext"), ("notes.txt", "text"), ("n.ipynb", "jupyter"), ("a.tsx", "typescript"),
        ("a.vue", "vue"), ("p.svg", "xml"), ("s.sh", "shell"), ("x.lisp", "lisp"), ("LICENSE", "text"),
        ("windows\\path\\x.go", "go"), ("noextension", "unknown"), ("x.weird", "unknown"), (".hidden", "unknown"),
    ],
)  # fmt: skip
def test_by_name(path: str, language: str) -> None:
    assert language_of(path) == language


@pytest.mark.parametrize(
    ("line", "language"),
    [
        ("#!/usr/bin/env python3", "python"), ("#!/bin/sh", "shell"), ("#!/usr/bin/perl -w", "perl"),
        ("#!/usr/bin/env -S node --harmony", "javascript"), ("#!", "unknown"), ("#!/opt/odd", "unknown"),
    ],
)  # fmt: skip
def test_by_first_line_only_where_the_name_says_nothing(line: str, language: str) -> None:
    assert language_of("script", line + "\nprint(1)\n") == language
    assert language_of("script.rb", line) == "ruby"


def test_every_language_has_a_token_or_is_data() -> None:
    named = {*_TAGS.values(), *_SUFFIXES.values()}
    assert named - set(LANGUAGES) <= DATA
    assert set(LANGUAGES) - named == set()
    assert PROSE <= MARKUP_AND_DATA <= named


def test_domains_and_binary_names() -> None:
    assert [domain_of(name) for name in ("markdown", "text", "python", "json", "unknown")] == [
        "text", "text", "code", "code", "code"
    ]  # fmt: skip
    assert is_binary_name("a.png")
    assert is_binary_name("lib.so")
    assert not is_binary_name("a.py")
