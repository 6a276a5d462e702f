"""Generation: from lines of curated code, from a grid of topics, from samples that are made harder or moved elsewhere.

- `seeded`: in the manner of OSS-Instruct (Wei et al., arXiv 2312.02120): 1 to 15 consecutive lines of a document, drawn
  by a keyed hash, inspire a problem with its solution. The sample keeps where the lines are from, license included.
- `grid`: topic × skill × difficulty × language, so many samples a cell.
- `evolve`: a new problem from a sample's, in depth or in breadth (Xu et al., arXiv 2304.12244; Luo et al., arXiv
  2306.08568).

All leave the model's words as they are, in `response`; the stage `format` takes them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from mify.errors import MifyError
from mify.post.synth.client import Request
from mify.post.synth.prompts import filled
from mify.post.synth.samples import Outcome, Rejected, Sample
from mify.post.synth.stage import Context, Stage, draw
from mify.post.synth.wanted import Wanted, answered

MAX_SEED_LINES = 15
_SEED_TRIES = 8
_MIN_SEED_CHARACTERS = 40


@dataclass(frozen=True)
class Generation(Stage):
    """What all kinds of generation are told.

    Args:
        endpoint: who is asked.
        max_new_tokens: the longest answer; one that is cut there falls at `format`.
        temperature, top_p: of sampling.
        tests: ask for tests. min_tests: how many at least.
    """

    endpoint: str = "teacher"
    max_new_tokens: int = 2048
    temperature: float = 0.8
    top_p: float = 0.95
    tests: bool = True
    min_tests: int = 3

    prompted: ClassVar[bool] = True

    def check(self, where: str) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1 or self.min_tests < 1:
            raise MifyError(
                f"{where} cannot be sampled as it says",
                "max_new_tokens and min_tests >= 1, temperature >= 0, top_p <= 1",
            )

    def asks(self) -> tuple[str, ...]:
        return (self.endpoint,)

    def request(self, context: Context, prompt: str, *about: Any) -> Request:
        """A request whose sampling seed depends on the run's seed, the stage and what it is about."""
        return Request(
            self.endpoint,
            context.client.model(self.endpoint),
            (("system", filled(context.prompts, "system")), ("user", prompt)),
            self.max_new_tokens,
            self.temperature,
            self.top_p,
            draw(context.seed, context.name, *about) >> 33,
        )

    def form(self, language: str) -> dict[str, Any]:
        """What the prompt's form is filled with."""
        return {"language": language, "tests": self.tests, "min_tests": self.min_tests}


@dataclass(frozen=True)
class Seeded(Generation):
    """From lines of curated code.

    Args:
        documents: what `mify curate` wrote (.parquet).
        count: how many samples. Those of a smaller count are among those of a larger one.
        languages: of the documents that are drawn from.
        max_lines: the longest seed.
    """

    documents: str = ""
    count: int = 1000
    languages: tuple[str, ...] = ("python",)
    max_lines: int = MAX_SEED_LINES

    kind: ClassVar[str] = "seeded"
    about: ClassVar[str] = "problems that lines of curated code inspire (OSS-Instruct)"
    source: ClassVar[bool] = True

    def check(self, where: str) -> None:
        super().check(where)
        if not self.documents:
            raise MifyError(f"{where}.documents is missing", "give the documents.parquet of mify curate")
        if self.count < 1 or not 1 <= self.max_lines <= 100:
            raise MifyError(f"{where}: count or max_lines cannot be", "count >= 1, max_lines from 1 to 100")

    def files(self) -> tuple[str, ...]:
        return (self.documents,)

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        wanted, unusable = [], []
        for seed, origin in self._seeds(context):
            if seed is None:
                unusable.append(Rejected(Sample(f"seed-{origin['document']}", origin=origin), "no usable lines"))
                continue
            prompt = filled(context.prompts, "seeded", seed=seed, **self.form(origin["language"]))
            request = self.request(context, prompt, origin["document"], origin["first_line"])
            wanted.append(Wanted(request, {**origin, "seed": seed}, origin["language"]))
        return answered(context, wanted, unusable)

    def _seeds(self, context: Context) -> Iterator[tuple[str | None, dict[str, Any]]]:
        """(lines, where they are from) of `count` documents; the smallest draws go first. Documents may come again."""
        from mify.curation.documents import read_documents

        found = sorted(
            (draw(context.seed, "seed", document.id), document.id)
            for document in read_documents(self.documents)
            if document.domain == "code" and document.language in self.languages
        )
        if not found:
            raise MifyError(
                f"{self.documents} holds no code in {', '.join(self.languages)}", "give other documents or languages"
            )
        drawn = {name for _, name in found[: self.count]}
        texts = {document.id: document for document in read_documents(self.documents) if document.id in drawn}
        for position in range(self.count):
            document = texts[found[position % len(found)][1]]
            number = position // len(found)
            lines, first = self._lines(context.seed, document.id, document.text, number)
            yield lines, {
                "document": document.id, "repo": document.repo, "path": document.path, "license": document.license,
                "language": document.language, "first_line": first, "round": number,
            }  # fmt: skip

    def _lines(self, seed: int, document: str, text: str, number: int) -> tuple[str | None, int]:
        """Consecutive lines and the number of the first, from 1; (None, 0) where none say enough."""
        rows = text.split("\n")
        for trial in range(_SEED_TRIES):
            length = 1 + draw(seed, "length", document, number, trial) % self.max_lines
            start = draw(seed, "start", document, number, trial) % max(1, len(rows) - length + 1)
            chosen = "\n".join(rows[start : start + length])
            if sum(not letter.isspace() for letter in chosen) >= _MIN_SEED_CHARACTERS:
                return chosen, start + 1
        return None, 0


@dataclass(frozen=True)
class Grid(Generation):
    """From a grid, without a seed.

    Args:
        topics, skills, difficulties, languages: the grid's sides.
        per_cell: samples of each cell.
    """

    topics: tuple[str, ...] = ()
    skills: tuple[str, ...] = ()
    difficulties: tuple[str, ...] = ("easy", "medium", "hard")
    languages: tuple[str, ...] = ("python",)
    per_cell: int = 1

    kind: ClassVar[str] = "grid"
    about: ClassVar[str] = "problems for each topic, skill, difficulty and language"
    source: ClassVar[bool] = True

    def check(self, where: str) -> None:
        super().check(where)
        for name in ("topics", "skills", "difficulties", "languages"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise MifyError(f"{where}.{name} is empty or names something twice", "list each once")
        if self.per_cell < 1:
            raise MifyError(f"{where}.per_cell = {self.per_cell}", "give a number from 1 up")

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        wanted = []
        cells = product(self.topics, self.skills, self.difficulties, self.languages, range(self.per_cell))
        for topic, skill, difficulty, language, number in cells:
            cell = {"topic": topic, "skill": skill, "difficulty": difficulty, "number": number}
            prompt = filled(context.prompts, "grid", **cell, **self.form(language))
            request = self.request(context, prompt, *cell.values(), language)
            wanted.append(Wanted(request, {**cell, "language": language}, language))
        return answered(context, wanted)


@dataclass(frozen=True)
class Evolve(Generation):
    """From samples, one new problem of each that is drawn.

    Args:
        share: of the samples that are evolved, drawn by a keyed hash.
        depth: share of those that become harder; the others move elsewhere.
    """

    share: float = 1.0
    depth: float = 0.5

    kind: ClassVar[str] = "evolve"
    about: ClassVar[str] = "a harder problem, or one from elsewhere, from a sample's"

    def check(self, where: str) -> None:
        super().check(where)
        if not (0 < self.share <= 1 and 0 <= self.depth <= 1):
            raise MifyError(f"{where}: share or depth is no share", "share above 0 up to 1, depth from 0 to 1")

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        wanted, left = [], []
        for sample in samples:
            if draw(context.seed, context.name, "share", sample.id) >= self.share * (1 << 64):
                left.append(Rejected(sample, "not drawn"))
                continue
            deep = draw(context.seed, context.name, "depth", sample.id) < self.depth * (1 << 64)
            methods = context.prompts["deepen" if deep else "broaden"]
            name = sorted(methods)[draw(context.seed, context.name, "method", sample.id) % len(methods)]
            language = sample.language or "python"
            prompt = filled(
                context.prompts, "evolve", problem=sample.problem, method=methods[name], **self.form(language)
            )
            origin = {"parent": sample.id, "method": f"{'deepen' if deep else 'broaden'}/{name}"}
            wanted.append(Wanted(self.request(context, prompt, sample.id, name), origin, language))
        return answered(context, wanted, left)


@dataclass(frozen=True)
class Read(Stage):
    """Samples from a file: what another tool made, or what `mify synth` left.

    Args:
        path: JSON lines, a sample each (the fields of `mify.post.synth.samples.Sample`; a header line is skipped). A
            line without an id gets one from its content.
    """

    path: str = ""

    kind: ClassVar[str] = "read"
    about: ClassVar[str] = "samples from a file of JSON lines"
    source: ClassVar[bool] = True

    def check(self, where: str) -> None:
        if not self.path:
            raise MifyError(f"{where}.path is missing", "give a file of JSON lines")

    def files(self) -> tuple[str, ...]:
        return (self.path,)

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        from mify.post.synth.reading import read_foreign

        kept, rejected = read_foreign(Path(self.path))
        return Outcome(kept, rejected)
