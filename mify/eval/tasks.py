"""Benchmarks as data: a task says what its items are, how to ask, what of the answer counts and how it is judged.

`mify.eval.runner` does the rest: completions (kept, resumable), execution in the sandbox or comparison, pass@k with a
bootstrap confidence interval.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.eval.completers import Sampling
from mify.eval.programs import Limits, Program
from mify.files import sha256_file


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where a benchmark's data came from: part of every result."""

    path: str
    sha256: str
    license: str

    @staticmethod
    def of(path: Path, license: str) -> DataSource:
        return DataSource(path.name, sha256_file(path), license)


@dataclass(frozen=True, slots=True)
class Item:
    """One problem. `fields` are the benchmark file's own."""

    id: str
    fields: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a task's own judge says of one answer.

    Args:
        passed: None where the judge could not say (counted apart, as "undecided").
        detail: why. figures: further numbers of this answer, averaged over items in the result.
    """

    passed: bool | None
    detail: str = ""
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        prompt: item → (text, suffix or None).
        parts: item → what stands before the text behind special tokens, see `Prompt`; None where nothing does.
        answer: (item, completion) → the part of the completion that counts.
        program: (item, answer) → the program that passes where the answer is right; None where no program judges.
        exact: (item, answer) → whether the answer is right; None where that is not how it is judged.
        judge: (item, answer) pairs → a judgement of each, all at a time: for judges that are slow to start.
        judged_by: how `judge` judges, for the records.
        metric: what the score is called where it is not pass@k.
        canonical: item → the published solution as an answer, for the harness's own proof; None where there is none.
        chat: item → the message to a chat model; None where the task has no such form.
        chat_answer: (item, completion) → the answer in a chat model's completion.
        system: item → what stands before the message, in the model's system role; None where nothing does.
        texts: item → texts of it that training must not have seen, for `contamination`; None where there are none.
        sampling: how to complete by default.
        packages: what the programs may import besides the standard library.
    """

    name: str
    items: Sequence[Item]
    source: DataSource
    sampling: Sampling
    prompt: Callable[[Item], tuple[str, str | None]]
    answer: Callable[[Item, str], str]
    parts: Callable[[Item], tuple[tuple[str, str], ...]] | None = None
    program: Callable[[Item, str], Program] | None = None
    exact: Callable[[Item, str], bool] | None = None
    judge: Callable[[Sequence[tuple[Item, str]]], list[Judgement]] | None = None
    judged_by: str = "exact match"
    metric: str | None = None
    canonical: Callable[[Item], str] | None = None
    chat: Callable[[Item], str] | None = None
    chat_answer: Callable[[Item, str], str] | None = None
    system: Callable[[Item], str] | None = None
    texts: Callable[[Item], tuple[str, ...]] | None = None
    limits: Limits = field(default_factory=Limits)
    packages: tuple[str, ...] = ()

    @property
    def infills(self) -> bool:
        return any(self.prompt(item)[1] is not None for item in self.items[:1])


def read_jsonl(path: str | os.PathLike[str], required: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file, each with the required fields.

    Raises:
        MifyError: the file is missing, damaged, or an object lacks a field; line and field are named.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    rows = []
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                missing = [name for name in required if not isinstance(row, dict) or name not in row]
                if missing:
                    raise MifyError(
                        f"{path}, line {number}: the field {missing[0]!r} is missing",
                        "give the file as it was published",
                    )
                rows.append(row)
    except FileNotFoundError:
        raise MifyError(f"{path} does not exist", "name the benchmark's file or folder with --data") from None
    except (json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise MifyError(f"{path} is damaged ({error})", "download it again") from None
    return rows


def read_rows(path: str | os.PathLike[str], required: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a .jsonl, .json (a list), .parquet or .arrow file, each with the required fields.

    Raises:
        MifyError: as `read_jsonl`; or a kind of file that is not among these.
    """
    path = Path(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "jsonl":
        return read_jsonl(path, required)
    if not path.is_file():
        raise MifyError(f"{path} does not exist", "name the benchmark's file or folder with --data")
    try:
        rows = _read_table(path, kind)
    except (OSError, ValueError, EOFError) as error:  # pyarrow's errors are among them
        raise MifyError(f"{path} is damaged ({error})", "download it again") from None
    for number, row in enumerate(rows, 1):
        missing = [name for name in required if not isinstance(row, dict) or name not in row]
        if missing:
            raise MifyError(
                f"{path}, row {number}: the field {missing[0]!r} is missing", "give the file as it was published"
            )
    return rows


def _read_table(path: Path, kind: str) -> list[dict[str, Any]]:
    if kind == "json":
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            rows = json.load(file)
        if not isinstance(rows, list):
            raise ValueError("no list of objects")
        return rows
    if kind == "parquet":
        import pyarrow.parquet as parquet

        return list(parquet.read_table(path).to_pylist())
    if kind == "arrow":
        import pyarrow as pa

        with pa.memory_map(str(path)) as source:
            try:
                return list(pa.ipc.open_stream(source).read_all().to_pylist())
            except pa.ArrowInvalid:
                source.seek(0)
                return list(pa.ipc.open_file(source).read_all().to_pylist())
    raise ValueError(f"a .{kind} file; .jsonl, .json, .parquet and .arrow are read")


def content_hash(values: Sequence[str]) -> str:
    """SHA-256 over strings, each framed by its length."""
    digest = hashlib.sha256()
    for value in values:
        data = value.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
