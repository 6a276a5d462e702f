"""The stage `format`: takes a model's words apart into problem, answer, code and tests, or says why it cannot."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from mify.errors import MifyError
from mify.post.synth.samples import Outcome, Rejected, Sample
from mify.post.synth.stage import Context, Stage

HEADINGS = ("problem", "solution", "tests")
_HEADING = re.compile(r"^[ \t]*(?:#{1,4}[ \t]*|\*\*)?(problem|solution|tests?)(?:\*\*)?[ \t]*:?(?:\*\*)?[ \t]*$", re.I)
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([^\s`]*)[^\n]*$")
_UNFILLED = re.compile(
    r"<(?:your|insert|todo|placeholder|the task)\b|\[(?:insert|your) |\bTODO\b|^\s*\.\.\.\s*$", re.I | re.M
)


class _Malformed(Exception):
    """Why an answer cannot be taken apart."""


@dataclass(frozen=True)
class Format(Stage):
    """The form that `prompts.toml` asks for: headings Problem, Solution and Tests, code in fences.

    Args:
        tests: reject what has no tests where it is Python; False takes them where they are.
        min_tests: `assert` statements in Python tests.
        min_problem_characters, max_problem_characters, max_code_characters: what a task may measure.
    """

    tests: bool = True
    min_tests: int = 2
    min_problem_characters: int = 40
    max_problem_characters: int = 8000
    max_code_characters: int = 16000

    kind: ClassVar[str] = "format"
    about: ClassVar[str] = "takes answers apart; rejects what has not the form that was asked for"

    def check(self, where: str) -> None:
        if self.min_tests < 0 or not 0 <= self.min_problem_characters <= self.max_problem_characters:
            raise MifyError(f"{where} allows no sample", "min_tests >= 0, min_problem_characters <= max_…")

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        kept, rejected = [], []
        for sample in samples:
            try:
                if not (sample.answer or sample.response.strip()):
                    raise _Malformed("an empty answer")
                parsed = self._taken_apart(sample) if sample.response else sample
                self._measured(parsed)
                kept.append(parsed)
            except _Malformed as problem:
                reason, _, evidence = str(problem).partition("|")
                rejected.append(Rejected(sample, reason, evidence))
        return Outcome(kept, rejected)

    def _taken_apart(self, sample: Sample) -> Sample:
        if sample.origin.get("finish") == "length":
            raise _Malformed("cut at its longest")
        parts = sections(sample.response)
        for name in ("problem", "solution"):
            if not parts.get(name):
                raise _Malformed(f"no {name}|{sample.response[:200]}")
        code = code_of(parts["solution"], sample.language)
        if code is None:
            raise _Malformed("no code block in the solution|" + parts["solution"][:200])
        found = parts.get("tests", "")
        tests = code_of(found, sample.language) if found else None
        return replace(
            sample, problem=parts["problem"], answer=parts["solution"], code=code, tests=tests or "", response=""
        )  # fmt: skip

    def _measured(self, sample: Sample) -> None:
        length = len(sample.problem)
        if not self.min_problem_characters <= length <= self.max_problem_characters:
            raise _Malformed(
                f"the problem is too {'short' if length < self.min_problem_characters else 'long'}|{length}"
            )
        if len(sample.code) > self.max_code_characters:
            raise _Malformed(f"the code is too long|{len(sample.code)}")
        unfilled = _UNFILLED.search(sample.problem) or _UNFILLED.search(sample.code if not _is_stub(sample) else "")
        if unfilled:
            raise _Malformed(f"a placeholder was left|{unfilled.group().strip()}")
        if self.tests and sample.language == "python":
            if not sample.tests.strip():
                raise _Malformed("no tests")
            count = asserts(sample.tests)
            if count is not None and count < self.min_tests:
                raise _Malformed(f"too few asserts|{count}")


def sections(response: str) -> dict[str, str]:
    """The texts under the headings Problem, Solution and Tests, outside fences; a heading that comes twice: the first.

    Raises `_Malformed` where a fence is not closed.
    """
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    fence = ""
    for line in response.replace("\r\n", "\n").split("\n"):
        mark = _FENCE.match(line)
        if mark:
            if not fence:
                fence = mark.group(1)
            elif mark.group(1).startswith(fence) and not mark.group(2):
                fence = ""
        heading = None if fence else _HEADING.match(line)
        if heading:
            name = heading.group(1).lower()
            name = "tests" if name.startswith("test") else name
            current = found.setdefault(name, []) if name not in found else []
        elif current is not None:
            current.append(line)
    if fence:
        raise _Malformed("a code block is not closed")
    return {name: "\n".join(lines).strip() for name, lines in found.items()}


def code_of(text: str, language: str) -> str | None:
    """The code in the fenced blocks of a text: all blocks in its language or without one, None where there is none."""
    blocks: list[str] = []
    lines: list[str] = []
    fence, named = "", ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence, lines, named = mark.group(1), [], mark.group(2).lower()
        elif mark and mark.group(1).startswith(fence) and not mark.group(2):
            if named in ("", language, *_ALSO.get(language, ())):
                blocks.append("\n".join(lines).strip("\n"))
            fence = ""
        elif fence:
            lines.append(line)
    code = "\n\n".join(block for block in blocks if block.strip())
    return code or None


def asserts(tests: str) -> int | None:
    """How many assert statements Python tests hold; None where they do not parse (the stage `syntax` says so)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return sum(isinstance(node, ast.Assert) for node in ast.walk(tree))


def _is_stub(sample: Sample) -> bool:
    """`...` is Python's own in stubs and protocols, where a docstring or a class stands around it."""
    return sample.language == "python" and ("Protocol" in sample.code or "overload" in sample.code)


_ALSO = {
    "python": ("py", "python3"), "cpp": ("c++", "cxx"), "csharp": ("c#", "cs"), "javascript": ("js",),
    "typescript": ("ts",), "shell": ("bash", "sh"), "go": ("golang",), "rust": ("rs",), "ruby": ("rb",),
}  # fmt: skip
