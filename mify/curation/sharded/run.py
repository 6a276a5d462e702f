"""The steps of a sharded curation, one after the other, over any engine.

    read → filter → gather (by id) → exact duplicates (by hash) → sign → pair (by band) → verify → star → decide → write

Every step is a list of tasks; every task's output is a folder in the work folder, whole or absent, under a key of all
that decides it (`mify.curation.engines.tasks`). All workers must see the work folder under the same path: on a cluster
it lies on a shared file system.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mify.curation.config import CurationConfig
from mify.curation.documents import Document, Rejected
from mify.curation.engines.tasks import STAMP, Engine, Outcome, Task, checked, execute
from mify.curation.minhash import choose_bands, near_report, prefilter
from mify.curation.outputs import OutputFormat
from mify.curation.readers import Limits, Piece
from mify.curation.sharded import deciding, filtering, pairing, partitions, reading, signing, starring, writing
from mify.curation.signatures import SignatureConfig
from mify.curation.stages import EXACT_DUPLICATES, NEAR_DUPLICATES
from mify.errors import MifyError
from mify.files import remove_leftovers
from mify.typed_tree import to_plain

Progress = Callable[[str, int, int], None]

# A bucket pairs its documents with this many of its first; see csrc/minhash/runs.hpp.
BUCKET_CAP = 256
# With more, what a shard holds of a partition is too little to be read at once.
_MAX_PARTITIONS = 8192
# Hashes of exact duplicates, 40 bytes each, that one task compares.
_DIGESTS_PER_TASK = 1 << 23


@dataclass(frozen=True)
class ShardOptions:
    """How the work is cut. None of it changes a result.

    Args:
        partitions: ranges of ids; 0: by `partition_bytes`.
        partition_bytes: text in a partition; a worker needs some three times as much memory. Above 1024 partitions they
            grow, up to eight times, then the partitions become more, up to 8192: then they grow on.
        entries_per_task: of band runs (16 bytes each) that a reduce task holds; up to 4 million pairs are beside them.
    """

    partitions: int = 0
    partition_bytes: int = 128 << 20
    entries_per_task: int = 1 << 24

    def num_partitions(self, num_bytes: int) -> int:
        """For a corpus of so much text."""
        if self.partitions:
            return self.partitions
        size = min(max(self.partition_bytes, num_bytes // 1024), 8 * self.partition_bytes)
        return min(max(1, -(-num_bytes // size)), _MAX_PARTITIONS)


@dataclass(frozen=True)
class FileInputs:
    """Inputs that tasks read, and the split of their documents.

    Args:
        pieces: what is read, in order.
        limits: what is too large.
        held_out: share of the contents that is held out, by a keyed hash of each.
        seed: of that hash.
    """

    pieces: Sequence[Piece]
    limits: Limits
    held_out: float
    seed: int


@dataclass
class Step:
    """A finished step: the outcomes of its tasks and the folders they made."""

    outcomes: list[Outcome] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Of all it wrote."""
        return hashlib.sha256("".join(outcome.digest for outcome in self.outcomes).encode()).hexdigest()

    @property
    def results(self) -> list[dict[str, Any]]:
        return [outcome.result for outcome in self.outcomes]

    def total(self, name: str) -> int:
        """A count, summed over the tasks."""
        return sum(result[name] for result in self.results)


class ShardedRun:
    """One curation on its way through the steps.

    Args:
        work: the folder of all intermediate files.
        config: the rules.
        engine: where tasks run.
        options: how the work is cut.
        progress: called as progress(stage, done, total).
    """

    def __init__(
        self, work: Path, config: CurationConfig, engine: Engine, options: ShardOptions, progress: Progress
    ) -> None:
        self.work, self.config, self.engine, self.options, self.progress = work, config, engine, options, progress
        self.seconds: dict[str, float] = {}
        self.tasks = self.resumed_tasks = 0
        self.near: dict[str, Any] = {"enabled": False}
        self.read = self.filtered = self.gathered = self.exact = self.decided = Step()
        self._star: Step | None = None

    @property
    def num_in(self) -> int:
        """Documents read."""
        return self.read.total("documents")

    @property
    def bytes_in(self) -> int:
        """Bytes of their texts."""
        return self.read.total("bytes")

    @property
    def redactions(self) -> dict[str, int]:
        """Redacted places by kind."""
        found: Counter[str] = Counter()
        for result in self.gathered.results:
            found.update(result["redactions"])
        return dict(sorted(found.items()))

    def read_entries(self, entries: Iterable[tuple[Document | Rejected, bool]]) -> None:
        """The input as this process has it: (document, whether it is held out)."""
        # It has no identity before it is read: so it is written anew, and what was written decides whether the steps
        # after it are done already.
        folder = self._folder("read", 0)
        shutil.rmtree(folder, ignore_errors=True)
        task = Task(reading.write_raw, {}, folder, places={"entries": entries})
        with self._timed("read"):
            self.read = Step([checked(task, execute(task))], [str(folder)])

    def read_files(self, inputs: FileInputs) -> None:
        """The input as tasks read it."""
        arguments = {"limits": list(inputs.limits), "held_out": inputs.held_out, "seed": inputs.seed}
        tasks: list[Task] = []
        for number, group in enumerate(reading.group_pieces(inputs.pieces)):
            label = f"read {group[0].location}" + (f" and {len(group) - 1} more" if len(group) > 1 else "")
            pieces = {"pieces": reading.describe(group)}
            tasks.append(Task(reading.read_pieces, arguments | pieces, self._folder("read", number), label=label))
        with self._timed("read"):
            self.read = self._run("read", tasks)

    def process(self) -> None:
        """Everything between reading and writing."""
        count = self.options.num_partitions(self.bytes_in)
        with self._timed("filter"):
            self.filtered = self._filter(count)
            self.gathered = self._gather(count)
        with self._timed(EXACT_DUPLICATES):
            self.exact = self._exact_duplicates()
        with self._timed(NEAR_DUPLICATES):
            self._near_duplicates()
        with self._timed("decide"):
            self.decided = self._decide()

    def write(self, kinds: Sequence[tuple[str, Sequence[str]]], form: OutputFormat) -> Step:
        """Writes the output files: for each kind (see `writing.write`) its names, in the order of the ids."""
        places = {"gathered": self.gathered.folders, "decided": self.decided.folders}
        reads = (self.gathered.digest, self.decided.digest)
        tasks: list[Task] = []
        for kind, names in kinds:
            for part, name in enumerate(names):
                arguments = {"kind": kind, "name": name, "form": form, "part": part, "num_parts": len(names)}
                folder = self._folder("write", len(tasks))
                tasks.append(Task(writing.write, arguments, folder, reads, f"write {name}", places))
        with self._timed("write"):
            return self._run("write", tasks)

    def _filter(self, num_partitions: int) -> Step:
        config = to_plain(self.config)
        # What these stages do not read decides nothing of theirs.
        rules = {key: value for key, value in config.items() if key not in ("near_duplicates", "mixture", "guard")}
        tasks: list[Task] = []
        sizes: list[int] = []
        for number, (folder, outcome) in enumerate(zip(self.read.folders, self.read.outcomes, strict=True)):
            for shard, documents in enumerate(outcome.result["shards"]):
                arguments = {"shard": shard, "order": number << 40, "num_partitions": num_partitions, "config": rules}
                label = f"filter shard {shard} of {folder}"
                target = self.work / "filter" / f"{number:05}-{shard:05}"
                tasks.append(Task(filtering.filter_shard, arguments, target, (outcome.digest,), label, {"raw": folder}))
                sizes.append(documents)
        return self._run("filter", tasks, "filter", sizes)

    def _gather(self, num_partitions: int) -> Step:
        places, reads = {"shards": self.filtered.folders}, (self.filtered.digest,)
        tasks = [
            Task(
                partitions.gather,
                {"partition": partition, "num_partitions": num_partitions},
                self._folder("gather", partition),
                reads,
                f"gather partition {partition}",
                places,
            )
            for partition in range(num_partitions)
        ]
        return self._run("gather", tasks)

    def _exact_duplicates(self) -> Step:
        documents = self.gathered.total("documents")
        count = max(1, -(-documents // _DIGESTS_PER_TASK))
        places, reads = {"partitions": self.gathered.folders}, (self.gathered.digest,)
        tasks = [
            Task(
                partitions.exact_duplicates,
                {"part": part, "num_parts": count},
                self._folder("exact", part),
                reads,
                f"exact duplicates, part {part}",
                places,
            )
            for part in range(count)
        ]
        step = self._run("exact", tasks)
        self.progress(EXACT_DUPLICATES, documents, documents)
        return step

    def _near_duplicates(self) -> None:
        rules = self.config.near_duplicates
        if not rules.enabled:
            return
        config = SignatureConfig(num_perm=rules.num_perm, ngram=rules.ngram, seed=rules.seed)
        bands = choose_bands(rules.jaccard_threshold, rules.num_perm)
        places: dict[str, Any] = {"gathered": self.gathered.folders}
        reads = (self.gathered.digest, self.exact.digest)
        signature = {"signature": asdict(config)}
        signed = self._run(
            "sign",
            [
                Task(
                    signing.sign,
                    signature | {"partition": partition, "bands": list(bands)},
                    self._folder("sign", partition),
                    reads,
                    f"sign partition {partition}",
                    {"gathered": folder, "exact": self.exact.folders},
                )
                for partition, folder in enumerate(self.gathered.folders)
            ],
        )
        if not signed.total("documents"):
            return
        places["signed"] = signed.folders
        ranges = pairing.plan_ranges(signed.total("entries"), bands[0], self.options.entries_per_task)
        steps = len(ranges) + len(signed.folders) + 1
        paired = self._run(
            "pair",
            [
                Task(
                    pairing.pair,
                    {"band_range": list(band_range), "bucket_cap": BUCKET_CAP},
                    self._folder("pair", number),
                    (signed.digest,),
                    f"candidate pairs of bands {band_range[0]} to {band_range[1] - 1}",
                    {"signed": signed.folders},
                )
                for number, band_range in enumerate(ranges)
            ],
            NEAR_DUPLICATES,
            total=steps,
        )
        similarity = {
            "threshold": rules.jaccard_threshold,
            "verify": rules.verify,
            "min_matches": prefilter(config, rules.jaccard_threshold),
        }
        places["paired"] = paired.folders
        verified = self._run(
            "verify",
            [
                Task(
                    pairing.verify,
                    signature | {"partition": partition, "similarity": similarity},
                    self._folder("verify", partition),
                    (*reads, signed.digest, paired.digest),
                    f"verify the pairs of partition {partition}",
                    places,
                )
                for partition in range(len(signed.folders))
            ],
            NEAR_DUPLICATES,
            done=len(ranges),
            total=steps,
        )
        counts = [[result["held_out"], result["documents"]] for result in signed.results]
        self._star = self._run(
            "star",
            [
                Task(
                    starring.star,
                    signature | {"similarity": similarity, "counts": counts, "bucket_cap": BUCKET_CAP},
                    self._folder("star", 0),
                    (*reads, signed.digest, paired.digest, verified.digest),
                    "the star over all pairs",
                    places | {"verified": verified.folders},
                )
            ],
            NEAR_DUPLICATES,
            done=steps - 1,
            total=steps,
        )
        counted = self._star.results[0] | {
            "documents": signed.total("documents"),
            "documents_without_words": signed.total("documents") - signed.total("entries"),
            "documents_with_invalid_utf8": signed.total("documents_with_invalid_utf8"),
            "buckets": paired.total("buckets"),
            "candidate_pairs": verified.total("candidate_pairs"),
            "verified_pairs": verified.total("verified_pairs"),
        }
        report = near_report(config, rules.jaccard_threshold, bands, rules.verify, BUCKET_CAP, counted)
        self.near = {"enabled": True, **report}

    def _decide(self) -> Step:
        star = self._star.folders[0] if self._star else None
        places = {"gathered": self.gathered.folders, "exact": self.exact.folders, "star": star}
        reads = (self.gathered.digest, self.exact.digest, self._star.digest if self._star else "")
        tasks = [
            Task(
                deciding.decide,
                {"partition": partition},
                self._folder("decide", partition),
                reads,
                f"decide on partition {partition}",
                places,
            )
            for partition in range(len(self.gathered.folders))
        ]
        return self._run("decide", tasks)

    def _folder(self, step: str, number: int) -> Path:
        return self.work / step / f"{number:05}"

    def _run(
        self,
        step: str,
        tasks: Sequence[Task],
        stage: str | None = None,
        sizes: Sequence[int] | None = None,
        *,
        done: int = 0,
        total: int | None = None,
    ) -> Step:
        """Runs the tasks of a step; `stage` is told of each by its size, after `done` of `total`."""
        sizes = sizes or [1] * len(tasks)
        whole = sum(sizes) if total is None else total
        (self.work / step).mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.work / step)

        def ended(index: int) -> None:
            nonlocal done
            done += sizes[index]
            if stage is not None:
                self.progress(stage, done, whole)

        outcomes = self.engine.run(tasks, ended)
        for task in tasks:
            if not (task.output / STAMP).is_file():
                raise MifyError(
                    f"the output of a worker ({task.label or task.name}) is not in {task.output}",
                    "name a --work-folder on a disk that all nodes share",
                )
        self.tasks += len(tasks)
        self.resumed_tasks += sum(outcome.resumed for outcome in outcomes)
        return Step(outcomes, [str(task.output) for task in tasks])

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
