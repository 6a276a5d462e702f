"""Preference data: of two answers to a prompt, which is the better one.

A line of JSON is {"prompt", "chosen", "rejected"}: texts, or, where the prompt is a list of messages, answers that are
texts or lists of one assistant message (the standard and the conversational form of TRL's preference data sets).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.post.prompts import Prompt, check_prompt

FORM = 'write {"prompt": "…", "chosen": "…", "rejected": "…"}'


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with the better and the worse answer, and the line it stood in, which tells it apart."""

    prompt: Prompt
    chosen: str
    rejected: str
    line: bytes


def read_preferences(path: Path) -> Iterator[Preference]:
    """The pairs of a .jsonl file, or of all in a folder, in order.

    Raises:
        MifyError: no such file, a line that is no pair (named by file and line).
    """
    for file, number, line in json_lines(path, "pairs of answers"):
        try:
            yield _preference(json_object(line), line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise MifyError(f"{file}, line {number}, is no pair of answers: {what}", FORM) from None


def json_lines(path: Path, what: str) -> Iterator[tuple[Path, int, bytes]]:
    """(file, number, line) of the lines that are not blank.

    Raises:
        MifyError: there is no .jsonl file.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise MifyError(f"{path} holds no .jsonl file of {what}", "check the path")
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield file, number, line.strip()


def json_object(line: bytes) -> dict[str, Any]:
    """The object that a line holds. Raises ValueError where it holds none."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.40} is no object")
    return value


def _preference(value: dict[str, Any], line: bytes) -> Preference:
    prompt = check_prompt(value["prompt"])
    chosen, rejected = _answer(value["chosen"]), _answer(value["rejected"])
    if chosen == rejected:
        raise ValueError("both answers are the same")
    return Preference(prompt, chosen, rejected, line)


def _answer(value: Any) -> str:
    if isinstance(value, list):
        if len(value) != 1 or value[0].get("role") != "assistant":
            raise ValueError("an answer is not one assistant message")
        value = value[0].get("content")
    if not isinstance(value, str) or not value:
        raise ValueError("an answer is no text, or an empty one")
    return value
