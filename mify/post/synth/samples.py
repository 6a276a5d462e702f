"""A sample (a problem, its answer, the code in it, tests), and the files that a stage leaves.

A stage leaves three files, the last of which says that it is done: NAME.kept.jsonl, NAME.rejected.jsonl (the same
records with `reason` and `evidence`) and NAME.json (counts, settings, digests of the two).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.files import atomic_file, read_json, sha256_file, write_json
from mify.typed_tree import canonical_json

FORMAT, VERSION = "synth-samples", 1


@dataclass(frozen=True, slots=True)
class Sample:
    """What the stages pass on.

    Args:
        id: names it through all stages.
        problem: the task, as a user would put it. answer: what the assistant says, prose and code.
        code: the code in the answer. tests: code that checks it; "" where there is none.
        language: of the code, by curation's names; "" where there is no code.
        category: of the risk that the problem belongs to (`mify.post.safety`); "" for ordinary ones.
        response: what the model said, until the stage `format` has taken it apart.
        origin: where it comes from: the stage and model, the request's key, and the seed, grid cell or parent.
        notes: what stages found, by their names.
    """

    id: str
    problem: str = ""
    answer: str = ""
    code: str = ""
    tests: str = ""
    language: str = ""
    category: str = ""
    response: str = ""
    origin: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_dict(value: Any) -> Sample:
        """Raises ValueError: an unknown field, an id that is none, a field of another type."""
        if not isinstance(value, dict):
            raise ValueError("no object")
        known = {entry.name: dict if entry.name in ("origin", "notes") else str for entry in fields(Sample)}
        for name, found in value.items():
            if name not in known:
                raise ValueError(f"an unknown field {name!r}")
            if not isinstance(found, known[name]):
                raise ValueError(f"{name} is {type(found).__name__}, not {known[name].__name__}")
        if not value.get("id"):
            raise ValueError("no id")
        return Sample(**value)

    def to_dict(self) -> dict[str, Any]:
        """Without what is empty."""
        return {name: value for name, value in asdict(self).items() if value}

    def noted(self, stage: str, note: Any) -> Sample:
        """The same sample with what a stage found."""
        return replace(self, notes={**self.notes, stage: note})


@dataclass(frozen=True, slots=True)
class Rejected:
    """A sample that a stage dropped: for what, and what it saw."""

    sample: Sample
    reason: str
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage made of what it was given.

    Args:
        kept, rejected: together all that came in.
        facts: what else it has to tell, for the report.
        unanswered: requests without an answer; the stage asks again when the run is continued.
    """

    kept: Sequence[Sample]
    rejected: Sequence[Rejected]
    facts: dict[str, Any] = field(default_factory=dict)
    unanswered: int = 0


class StageFiles:
    """The files of one stage in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.kept, self.rejected = folder / f"{name}.kept.jsonl", folder / f"{name}.rejected.jsonl"
        self.done = folder / f"{name}.json"

    def write(self, key: str, settings: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
        """Writes all three and returns the last one's content."""
        reasons = Counter(item.reason for item in outcome.rejected)
        self.done.unlink(missing_ok=True)
        _write_lines(self.kept, (sample.to_dict() for sample in outcome.kept))
        _write_lines(
            self.rejected,
            ({**item.sample.to_dict(), "reason": item.reason, "evidence": item.evidence} for item in outcome.rejected),
        )
        done = {
            "format": "synth-stage",
            "version": VERSION,
            "key": key,
            "settings": settings,
            "in": len(outcome.kept) + len(outcome.rejected),
            "kept": len(outcome.kept),
            "rejected": dict(sorted(reasons.items())),
            "facts": outcome.facts,
            "unanswered": outcome.unanswered,
            "sha256": {"kept": sha256_file(self.kept), "rejected": sha256_file(self.rejected)},
        }
        write_json(self.done, done)
        return done

    def read(self) -> dict[str, Any] | None:
        """What `write` returned; None where the stage is not done, or its files are not the ones that it wrote."""
        if not self.done.exists():
            return None
        done = read_json(self.done)
        if not isinstance(done, dict) or (done.get("format"), done.get("version")) != ("synth-stage", VERSION):
            raise MifyError(f"{self.done} is no synth-stage of version {VERSION}", "give another folder with --out")
        for kind, path in (("kept", self.kept), ("rejected", self.rejected)):
            if not path.exists() or sha256_file(path) != done["sha256"][kind]:
                return None
        return done


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a stage's kept or rejected file.

    Raises:
        MifyError: it is missing, or a line is no sample.
    """
    for number, value in read_lines(path):
        try:
            yield Sample.from_dict({key: item for key, item in value.items() if key not in ("reason", "evidence")})
        except ValueError as error:
            raise MifyError(f"{path}:{number} is no sample: {error}", "it was changed after it was written") from None


def read_rejected(path: Path) -> Iterator[Rejected]:
    """The samples of a stage's rejected file, with reason and evidence."""
    for (_, value), sample in zip(read_lines(path), read_samples(path), strict=True):
        yield Rejected(sample, value["reason"], value["evidence"])


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line from 2, object) of a file whose first line is its header."""
    try:
        with open(path, encoding="utf-8") as file:
            header = json.loads(next(file, "null"))
            if not isinstance(header, dict) or (header.get("format"), header.get("version")) != (FORMAT, VERSION):
                raise MifyError(f"{path} holds no {FORMAT} of version {VERSION}", "give a file that mify synth wrote")
            for number, line in enumerate(file, start=2):
                yield number, json.loads(line)
    except FileNotFoundError:
        raise MifyError(f"{path} does not exist", "run the stage that writes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MifyError(f"{path} is damaged ({error})", "delete it; the stage writes it again") from None


def digest(*parts: Any) -> str:
    """SHA-256 of JSON values, 64 hexadecimal digits."""
    return sha256(canonical_json(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(canonical_json({"format": FORMAT, "version": VERSION}) + "\n")
        # ASCII: half of a surrogate pair, which a model can say, has no UTF-8.
        file.writelines(json.dumps(value, sort_keys=True, ensure_ascii=True) + "\n" for value in values)
