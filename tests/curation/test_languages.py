"""Languages by name and first line, named as their tokens are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mify.curation.language_guess import language_by_content
from mify.curation.languages import (
    _SUFFIXES,
    DATA,
    LANGUAGE_OF_TAG,
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
        # Names that identify does not know, and pygments does.
        ("a.f", "fortran"), ("a.vala", "vala"), ("a.TCL", "tcl"), ("BUILD.bazel", "python"), ("a.ksh", "shell"),
        ("a.COB", "cobol"), ("meson.build", "meson"),
        # Names of several languages, of single letters, of keys and logs.
        ("a.s", "assembly"), ("a.x", "unknown"), ("id_rsa", "unknown"), ("a.pem", "unknown"), ("a.objdump", "unknown"),
        ("a.service", "unknown"),
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


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("import os\n\nprint(os.sep)\n", "python"),
        ("There is no import duty.\nimport is a word here\n", None),
        ("#include <stdio.h>\nint main(void) { return 0; }\n", "c"),
        ("#include <vector>\nnamespace a { std::vector<int> x; }\n", "cpp"),
        ("#include <cuda.h>\n__global__ void f(float* x) { x[0] = 1; }\n", "cuda"),
        ('#import <Foundation/Foundation.h>\n#include "x.h"\n@interface A : NSObject\n@end\n', None),
        ("<!DOCTYPE html>\n<html><body>Hello</body></html>\n", "html"),
        ('<?xml version="1.0"?>\n<a><b/></a>\n', "xml"),
        ("<?php echo 1;\n", "php"),
        ('{"a": [1, 2, {"b": null}]}\n', "json"),
        ('{"a": [1, 2, {"b": nul', None),
        ("\\documentclass{article}\n\\begin{document}x\\end{document}\n", "tex"),
        ("cmake_minimum_required(VERSION 3.20)\nproject(x)\n", "cmake"),
        ("# vim: set ft=ruby :\nputs 1\n", "ruby"),
        ("Title\n=====\n\n.. note:: a directive\n", "restructuredtext"),
        ("Title\n=====\n\nPlain prose.\n", "text"),
        ("use strict;\nmy $x = 1;\nmy @list = (1, 2);\nour %h = ();\n", "perl"),
        ("Nothing that could be told.\n", None),
        ("", None),
    ],
)
def test_by_content(text: str, language: str | None) -> None:
    assert language_by_content(text) == language


def test_files_of_this_project_without_their_names(checkout: Path) -> None:
    for pattern, language in (
        ("mify/curation/*.py", "python"),
        ("csrc/minhash/*.cpp", "cpp"),
        ("csrc/**/*.cu", "cuda"),
    ):
        files = sorted(checkout.glob(pattern))
        assert files
        told = [language_by_content(path.read_text(encoding="utf-8")) for path in files]
        assert told.count(language) >= 0.8 * len(files), (pattern, told)
        assert set(told) <= {language, None, "cpp"}, (pattern, told)


def test_every_language_has_a_token_or_is_data() -> None:
    named = {*LANGUAGE_OF_TAG.values(), *_SUFFIXES.values()}
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
