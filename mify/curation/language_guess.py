"""The language of a file where `identify` says nothing: by the names that pygments knows, then by its content.

Content tells in few languages only, and each is asked for what hardly stands in another: pygments' own `guess_lexer`
would call every text with "import " in it Python. So Python must parse, JSON must load, C and C++ must tokenize without
an error; the rest goes by pygments' analysis of the text at a score that its authors give to what is unmistakable.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from mify.curation.languages import LANGUAGE_OF_TAG

HEAD_CHARACTERS = 8192

# Alias of pygments → our language, where they differ; None: no code (logs, sessions, keys).
_ALIASES: dict[str, str | None] = {
    "fortranfixed": "fortran", "cobolfree": "cobol", "delphi": "pascal", "docker": "dockerfile", "make": "makefile",
    "tcsh": "shell", "bash": "shell", "console": None, "racket": "scheme", "newlisp": "lisp", "common-lisp": "lisp",
    "emacs-lisp": "lisp", "erl": None, "nimrod": "nim", "nasm": "assembly", "tasm": "assembly", "gas": "assembly",
    "ca65": "assembly", "wast": "assembly", "perl6": "raku", "vb.net": "vbnet", "lagda": "agda",
    "literate-agda": "agda", "literate-haskell": "haskell", "literate-idris": "idris", "asc": None, "kmsg": None,
    "email": None, "irc": None, "tap": None, "postgres-explain": None, "sgf": None, "gcode": None, "todotxt": None,
    "wdiff": None, "pytb": None, "py2tb": None, "rconsole": None, "dylan-console": None, "sqlite3": None,
    "gap-console": None, "bare": None, "snbt": None, "output": None, "c++": "cpp", "js": "javascript",
    "ts": "typescript", "py": "python", "python3": "python", "python2": None, "sh": "shell", "zsh": "shell",
    "rst": "restructuredtext", "md": "markdown", "objc": "objective-c", "c#": "csharp", "f#": "fsharp",
    "elisp": "lisp", "latex": "tex", "splus": "r", "text": None, "json5": "json",
}  # fmt: skip
# Asked by content: alias → (language, least score of pygments' analysis).
_BY_CONTENT = {
    "html": ("html", 0.5), "xml": ("xml", 0.45), "tex": ("tex", 1.0), "cmake": ("cmake", 0.8), "perl": ("perl", 0.9),
    "rst": ("restructuredtext", 0.5), "diff": ("diff", 0.9),
}  # fmt: skip

_RST = re.compile(r"^\.\. [\w-]+::|``[^`\n]+``|:[a-z]+:`|^\.\. _", re.M)
_CPP = re.compile(
    r"\bstd::|^\s*(?:template\s*<|(?:inline )?namespace \w|using namespace |class \w+[^;]*\{|constexpr )", re.M
)
_CUDA = re.compile(r"\b__(?:global|device)__\b|<<<")
_OBJECTIVE_C = re.compile(r"^\s*(?:@(?:interface|implementation|protocol)|#import)\b", re.M)
# Names that more use than the language that pygments has for them: data, units of systemd, templates of anything.
_OTHERS_USE_IT = frozenset(
    [".run", ".load", ".path", ".module", ".tmpl", ".tpl", ".sources", ".resource", ".target", ".device", ".scope",
     ".service", ".max", ".do", ".mod", ".sp", ".sl", ".st", ".ms", ".pc", ".ma", ".nb", ".aux", ".pack", ".proc",
     ".graph", ".instances", ".zone", ".session", ".spec", ".intr", ".at", ".be", ".fun", ".sig", ".xc", ".es"]
)  # fmt: skip


def language_by_name(name: str) -> str | None:
    """The language of the only family of lexers to which pygments gives this file name; None where there is none."""
    suffixes, names = _patterns()
    dot = name.rfind(".")
    suffix = name[dot:] if dot > 0 else ""
    return names.get(name) or suffixes.get(suffix) or suffixes.get(suffix.lower())


def language_by_content(text: str) -> str | None:
    """The language of a text without a name; None where it is not unmistakable."""
    from pygments.lexers import get_lexer_by_name
    from pygments.modeline import get_filetype_from_buffer

    head = text[:HEAD_CHARACTERS]
    stated = get_filetype_from_buffer(head)
    if stated and (alias := _canonical().get(stated.lower())) and (language := _of_alias(alias)) is not None:
        return language
    begin = head.lstrip()[:8].lower()
    if begin.startswith("<?php"):
        return "php"
    if begin[:1] in ("{", "[") and _is_json(text):
        return "json"
    scores = {}
    for alias, (language, least) in _BY_CONTENT.items():
        score = type(get_lexer_by_name(alias)).analyse_text(head)
        if score >= least:
            scores[language] = score
    if scores:
        found = max(sorted(scores), key=lambda language: scores[language])
        if found == "restructuredtext" and not _RST.search(head):
            return "text"  # a title with a line below it is common to both
        return "html" if found == "xml" and "<html" in head.lower() else found
    if ("import " in head or "def " in head) and _is_python(text):
        return "python"
    if "#include" in head and not _OBJECTIVE_C.search(head) and _is_c(head):
        return "cuda" if _CUDA.search(head) else "cpp" if _CPP.search(head) else "c"
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_python(text: str) -> bool:
    from mify.curation.quality import syntax_problem

    return syntax_problem(text) is None


def _is_c(head: str) -> bool:
    from pygments.lexers import get_lexer_by_name
    from pygments.token import Error

    # The last line may be cut within a string or comment.
    whole = head[: head.rfind("\n") + 1]
    lexer: Any = get_lexer_by_name("cpp")
    return all(token is not Error for token, _ in lexer.get_tokens(whole))


@functools.lru_cache(maxsize=1)
def _patterns() -> tuple[dict[str, str], dict[str, str]]:
    """(suffix → language, whole name → language) of pygments, as far as all lexers of a pattern are one language."""
    from pygments.lexers import get_all_lexers

    found: dict[str, set[str | None]] = {}
    for _, aliases, patterns, _ in get_all_lexers(plugins=False):
        for pattern in patterns:
            found.setdefault(pattern, set()).add(_of_alias(aliases[0]) if aliases else None)
    suffixes: dict[str, str] = {}
    names: dict[str, str] = {}
    for pattern, languages in found.items():
        (language, *more) = languages
        if more or language is None or any(sign in pattern[1:] for sign in "*?["):
            continue
        if pattern.startswith("*."):
            # A single letter says little: ".x" and ".k" are many things.
            if pattern[1:] not in _OTHERS_USE_IT and (len(pattern) > 3 or pattern in ("*.f", "*.F")):
                suffixes[pattern[1:]] = language
        elif not pattern.startswith(("*", "[")):
            names[pattern] = language
    return suffixes, names


def _of_alias(alias: str) -> str | None:
    """Our name of a lexer by the first of its aliases; None for what is no code."""
    if alias in _ALIASES:
        return _ALIASES[alias]
    if "console" in alias or "objdump" in alias or "+" in alias:
        return None
    return LANGUAGE_OF_TAG.get(alias, alias)


@functools.lru_cache(maxsize=1)
def _canonical() -> dict[str, str]:
    """Any alias of pygments → the first of its lexer."""
    from pygments.lexers import get_all_lexers

    lexers = [aliases for _, aliases, _, _ in get_all_lexers(plugins=False) if aliases]
    return {alias: aliases[0] for aliases in reversed(lexers) for alias in aliases}
