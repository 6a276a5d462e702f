"""Syntax of languages other than Python, by tree-sitter (extra `curation`): how much of a file no grammar reads.

tree-sitter always builds a tree and marks what it could not place. Its grammars are approximations and macros are no C,
so a file is not judged by a single error: a language is checked where a grammar for it is installed, and a document
falls when the marked stretches cover more than `max_error_fraction` of it. What is called C may be C++ (a header's name
does not tell), so it falls only where neither grammar places it. Python is checked exactly, by its own parser
(`mify.curation.quality`).
"""

from __future__ import annotations

import functools
import importlib
import re
from dataclasses import dataclass
from typing import Any

from mify.curation.extras import Use, found
from mify.curation.quality import Finding

# Shells of other grammars than bash's.
_OTHER_SHELL = re.compile(r"\.(?:fish|csh|tcsh|zsh)$")
_OTHER_SHELL_LINE = re.compile(r"#!.*\b(?:fish|t?csh|zsh|ksh)\b")

# Language → (module, function that gives the grammar).
GRAMMARS = {
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "csharp": ("tree_sitter_c_sharp", "language"),
    "go": ("tree_sitter_go", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "ruby": ("tree_sitter_ruby", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "shell": ("tree_sitter_bash", "language"),
    "typescript": ("tree_sitter_typescript", "language_tsx"),
}


@dataclass(frozen=True)
class SyntaxRules:
    """Whether documents must parse.

    Args:
        tree_sitter: "installed": languages whose grammar is installed are checked, the others counted in the report as
            unchecked; "required": a missing grammar is an error; "off": none is checked.
        max_error_fraction: share of a document's bytes that the grammar may not be able to place.
    """

    tree_sitter: Use = "installed"
    max_error_fraction: float = 0.1


def modules(rules: SyntaxRules) -> tuple[str, ...]:
    """The packages that the rules use, sorted; () where they are off."""
    return () if rules.tree_sitter == "off" else ("tree_sitter", *sorted({module for module, _ in GRAMMARS.values()}))


def checked_languages(rules: SyntaxRules) -> tuple[str, ...]:
    """The languages that are checked here, sorted."""
    return tuple(sorted(language for language in GRAMMARS if _is_checked(language, rules)))


def _is_checked(language: str, rules: SyntaxRules) -> bool:
    known = rules.tree_sitter != "off" and language in GRAMMARS
    return known and found("tree_sitter") and found(GRAMMARS[language][0])


def syntax_finding(text: str, language: str, rules: SyntaxRules, path: str = "") -> Finding | None:
    """The rule that a document fails, None where it passes or its language is not checked."""
    if not _is_checked(language, rules):
        return None
    if language == "shell" and (_OTHER_SHELL.search(path) or _OTHER_SHELL_LINE.match(text)):
        return None
    fraction, line = error_fraction(text, language)
    if fraction > rules.max_error_fraction and language == "c" and _is_checked("cpp", rules):
        fraction, line = min((fraction, line), error_fraction(text, "cpp"))
    if fraction > rules.max_error_fraction:
        return Finding(f"tree-sitter/{language}", f"{fraction:.4f} of it, from line {line}", rules.max_error_fraction)
    return None


def error_fraction(text: str, language: str) -> tuple[float, int]:
    """(share of the bytes under nodes that the grammar could not place, line of the first from 1, 0 without any).

    A missing token (a bracket never closed) counts as one byte.
    """
    from tree_sitter import QueryCursor

    parser, query = _parser(language)
    source = text.encode("utf-8")
    root = parser.parse(source).root_node
    if not root.has_error or not source:
        return 0.0, 0
    covered, end, first = 0, 0, None
    nodes = [node for group in QueryCursor(query).captures(root).values() for node in group]
    for node in sorted(nodes, key=lambda node: (node.start_byte, -node.end_byte)):
        if first is None:
            first = node.start_point[0] + 1
        begin, stop = max(node.start_byte, end), max(node.end_byte, node.start_byte + 1)
        covered += max(0, stop - begin)
        end = max(end, stop)
    return min(1.0, covered / len(source)), first or 1


@functools.lru_cache(maxsize=len(GRAMMARS))
def _parser(language: str) -> tuple[Any, Any]:
    from tree_sitter import Language, Parser, Query

    module, function = GRAMMARS[language]
    grammar = Language(getattr(importlib.import_module(module), function)())
    return Parser(grammar), Query(grammar, "(ERROR) @error (MISSING) @missing")
