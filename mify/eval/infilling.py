"""Infilling: single lines of held-out code by exact match, and HumanEval-Infilling by execution.

Held-out lines: from each document the `lines_per_document` eligible lines with the smallest hash of (document id, line
number), so the choice depends on nothing but the document. A line is eligible with at least `MIN_CHARACTERS` characters
that are not white space, that hold a letter, and that are no comment. The model sees everything before the line's first
character that is not white space, and everything from its line end on; its answer is cut at the first line end, and
must equal the line, trailing white space aside.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError
from mify.eval.completers import Sampling
from mify.eval.humaneval import STOP
from mify.eval.sandbox import Limits, Program
from mify.eval.tasks import DataSource, Item, Task, content_hash, read_jsonl

if TYPE_CHECKING:
    from mify.curation.documents import Document

MIN_CHARACTERS = 8
COMMENTS = ("#", "//", "/*", "*", "--", '"""', "'''")


def held_out_lines(
    documents: Iterable[Document], *, lines: int = 200, lines_per_document: int = 2, name: str = "infilling"
) -> Task:
    """Exact match on single lines of held-out code documents.

    Args:
        lines: how many at most, those with the smallest hashes over all documents.

    Raises:
        MifyError: no document has an eligible line.
    """
    chosen: list[tuple[str, Item]] = []
    for document in documents:
        if document.domain != "code":
            continue
        rows = document.text.split("\n")
        ranked = sorted(
            (_hash(document.id, number), number) for number, row in enumerate(rows) if eligible(row) and len(rows) > 1
        )
        for digest, number in ranked[:lines_per_document]:
            row = rows[number].rstrip()
            indent = len(row) - len(row.lstrip())
            before = "".join(f"{line}\n" for line in rows[:number]) + row[:indent]
            after = "\n" + "\n".join(rows[number + 1 :])
            fields = {"prefix": before, "suffix": after, "middle": row[indent:], "language": document.language}
            chosen.append((digest, Item(f"{document.id[:16]}:{number + 1}", fields)))
    if not chosen:
        raise MifyError("no held-out code document has a line to infill", "hold out some code, of more than one line")
    items = [item for _, item in sorted(chosen, key=lambda entry: entry[0])[:lines]]
    return Task(
        name=name,
        items=items,
        source=DataSource("held-out documents", content_hash([_text_of(item) for item in items]), "as the documents"),
        sampling=Sampling(max_new_tokens=48, stop=("\n",)),
        prompt=lambda item: (item.fields["prefix"], item.fields["suffix"]),
        answer=lambda item, completion: completion.split("\n", 1)[0].rstrip(),
        exact=lambda item, answer: answer == item.fields["middle"],
        canonical=lambda item: item.fields["middle"],
    )


def eligible(row: str) -> bool:
    """Whether a line is worth infilling: enough characters, a letter among them, no comment."""
    stripped = row.strip()
    return (
        len("".join(stripped.split())) >= MIN_CHARACTERS
        and any(character.isalpha() for character in stripped)
        and not stripped.startswith(COMMENTS)
    )


def _hash(identity: str, number: int) -> str:
    return hashlib.sha256(f"infilling:{identity}:{number}".encode()).hexdigest()


def _text_of(item: Item) -> str:
    return "\0".join((item.id, item.fields["prefix"], item.fields["middle"], item.fields["suffix"]))


def humaneval_infilling(path: str | os.PathLike[str], kind: str) -> Task:
    """HumanEval-Infilling (Bavarian et al., arXiv 2207.14255): single-line, multi-line or random-span, by execution.

    Args:
        path: the benchmark's .jsonl(.gz). kind: the name of the task, e.g. "single-line".
    """
    file = Path(path)
    rows = read_jsonl(file, ("task_id", "prompt", "suffix", "entry_point", "canonical_solution", "test"))
    single = kind == "single-line"
    return Task(
        name=f"humaneval-infilling-{kind}",
        items=[Item(str(row["task_id"]), row) for row in rows],
        source=DataSource.of(file, "MIT"),
        sampling=Sampling(max_new_tokens=64 if single else 256, stop=("\n",) if single else STOP),
        prompt=lambda item: (item.fields["prompt"], item.fields["suffix"]),
        answer=(lambda item, completion: completion.split("\n", 1)[0] + "\n") if single else _as_it_is,
        program=infilled_program,
        canonical=lambda item: item.fields["canonical_solution"],
        texts=lambda item: (item.fields["prompt"] + item.fields["canonical_solution"] + item.fields["suffix"],),
        packages=("numpy",),
        limits=Limits(cpu_s=5.0),
    )


def _as_it_is(item: Item, completion: str) -> str:
    return completion


def infilled_program(item: Item, answer: str) -> Program:
    """The original's program: prompt, completion and suffix; then tests and the call of `check`."""
    fields: dict[str, Any] = item.fields
    return Program(
        item.id,
        fields["prompt"] + answer + fields["suffix"],
        f"{fields['test']}\ncheck({fields['entry_point']})",
        setup=fields["prompt"] + fields["canonical_solution"] + fields["suffix"],
        entry_points=(fields["entry_point"],),
    )
