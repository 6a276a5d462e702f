"""Curation from documents to a corpus: every stage in its order, every rejected document kept beside with its reason.

    read → license → language → generated → quality → syntax → personal data → exact duplicates
         → decontamination → near duplicates → mixture

Same documents and configuration give the same files, byte for byte, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.curation import stages, syntax
from mify.curation.config import CurationConfig, check_ranges
from mify.curation.documents import Document, Rejected, write_documents, write_rejected
from mify.curation.evidence import overlap
from mify.curation.extras import require, versions
from mify.curation.findings import Findings
from mify.curation.funnel import (
    Dropped,
    Item,
    account,
    composition_table,
    count,
    funnel_table,
    guard_sources,
    reconcile,
)
from mify.curation.languages import MARKUP_AND_DATA
from mify.curation.mixture import mixture
from mify.curation.stages import Rejection, examine_all, reject
from mify.curation.workers import chunks, workers
from mify.errors import MifyError
from mify.files import read_json, remove_leftovers, sha256_file, write_json
from mify.typed_tree import to_plain

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["CurationConfig", "CurationReport", "check_folder", "curate", "load_report"]

REPORT_FORMAT = "curation-report"
REPORT_VERSION = "1"
DOCUMENTS = "documents.parquet"
HELD_OUT = "held_out.parquet"
REJECTED = "rejected.parquet"
REPORT = "report.json"

# Documents per piece of work: some 200 KB of text, so that two processes end together.
_CHUNK = 16

Progress = Callable[[str, int, int], None]
DEFAULTS = CurationConfig()


@dataclass
class CurationReport:
    """What a curation did.

    Args:
        data: the report as it stands in report.json (no times: it is the same for the same input).
        seconds: wall-clock seconds per part of the run.
        folder: where the files lie; None after a dry run.
    """

    data: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)
    folder: Path | None = None

    def print(self, console: Console) -> None:
        """The funnel, the composition and what was repeated, as tables."""
        console.print(funnel_table(self.data))
        console.print(composition_table(self.data))
        console.print(self.data["mixture"]["statement"], highlight=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as it stands in report.json."""
        return self.data

    def headline(self) -> str:
        """One line: documents in and kept, megabytes kept."""
        totals = self.data["totals"]
        return (
            f"{totals['in']['documents']:,} documents in, {totals['kept']['documents']:,} kept"
            f" ({totals['kept']['bytes'] / 1e6:.1f} MB)"
        )


def curate(
    documents: Iterable[Document | Rejected],
    out: str | os.PathLike[str],
    config: CurationConfig = DEFAULTS,
    progress: Progress | None = None,
    *,
    held_out: Iterable[Document] = (),
    num_workers: int = 1,
    dry_run: bool = False,
    collection: Mapping[str, Any] | None = None,
) -> CurationReport:
    """Curates `documents` into the folder `out`: documents.parquet, held_out.parquet (where there is one),
    rejected.parquet, and last report.json: where it stands, the others are whole.

    Args:
        documents: for training; what a reader rejected may stand among them, and is counted.
        out: the folder. Only these four files in it are written; a folder with other files is refused.
        config: the rules.
        progress: called as progress(stage, done, total).
        held_out: for evaluation. They pass the same stages; a document for training that is an exact or near duplicate
            of one of them is removed.
        num_workers: processes for the stages that look at one document at a time.
        dry_run: count and report, write nothing, and do not stop at the guard.
        collection: what the collector reports of its source; it is stored in the report.

    Raises:
        MifyError: a value out of range, a foreign folder, no documents, a source that lost too much, a full disk.
    """
    check_ranges(config)
    require("syntax.tree_sitter", config.syntax.tree_sitter, syntax.modules(config.syntax))
    require("personal_data.detect_secrets", config.personal_data.detect_secrets, ("detect_secrets",))
    out = Path(out)
    if not dry_run:
        check_folder(out)
    run = _Run(config, progress, num_workers)
    with run.timed("read"):
        run.enter(documents, held_out)
    if not run.items and not run.dropped:
        raise MifyError("there are no documents to curate", "check the paths: every one was empty")
    with run.timed("filter"):
        run.filter()
    with run.timed(stages.EXACT_DUPLICATES):
        run.exact_duplicates()
    with run.timed(stages.DECONTAMINATION):
        run.decontaminate()
    with run.timed(stages.NEAR_DUPLICATES):
        run.near_duplicates()
    report = run.report()
    if collection is not None:
        report["collection"] = dict(collection)
    if dry_run:
        return CurationReport(report, run.seconds)
    guard_sources(report, config.guard.max_source_loss, config.guard.min_documents)
    with run.timed("write"):
        run.write(out, report)
    return CurationReport(report, run.seconds, out)


def load_report(folder: Path) -> dict[str, Any]:
    """The report of a finished curation.

    Raises:
        MifyError: there is none, or it is of another format or version.
    """
    report = read_json(folder / REPORT)
    if not isinstance(report, dict) or report.get("format") != REPORT_FORMAT:
        raise MifyError(f"{folder / REPORT} is no report of a curation", "give a folder that `mify curate` wrote")
    if report.get("version") != REPORT_VERSION:
        raise MifyError(
            f"{folder / REPORT} has version {report.get('version')!r}; this mify reads {REPORT_VERSION}",
            "use the mify that wrote it, or curate again",
        )
    return report


def check_folder(out: Path) -> None:
    """Raises `MifyError` where `out` is a file, or a folder with files that no curation wrote."""
    if out.exists() and not out.is_dir():
        raise MifyError(f"{out} is a file", "give a folder with --out")
    ours = {DOCUMENTS, HELD_OUT, REJECTED, REPORT}
    foreign = sorted(path.name for path in out.iterdir() if path.name not in ours) if out.is_dir() else []
    foreign = [name for name in foreign if not name.startswith(tuple(f".{known}." for known in ours))]
    if foreign:
        raise MifyError(f"the folder {out} holds other files ({foreign[0]})", "give a new or empty folder with --out")


class _Run:
    """One curation: the documents on their way, what was dropped, and the accounts of the single stages."""

    def __init__(self, config: CurationConfig, progress: Progress | None, num_workers: int) -> None:
        self.config = config
        self.progress = progress or (lambda stage, done, total: None)
        self.num_workers = num_workers
        self.items: list[Item] = []
        self.dropped: list[Dropped] = []
        self.redactions: Counter[str] = Counter()
        self.near_report: dict[str, Any] = {"enabled": False}
        self.benchmarks: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.num_in = self.bytes_in = 0

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    def enter(self, documents: Iterable[Document | Rejected], held_out: Iterable[Document]) -> None:
        """Takes the documents in, the held-out ones first: of two equal documents the first stays."""
        seen: set[str] = set()
        for is_held_out, group in ((True, held_out), (False, documents)):
            for entry in group:
                document = entry if isinstance(entry, Document) else entry.document
                size = document.num_bytes
                self.num_in += 1
                self.bytes_in += size
                if isinstance(entry, Rejected):
                    self.dropped.append(Dropped(entry, size, is_held_out))
                elif document.id in seen:
                    why = Rejection(stages.READ, "read twice", {"kept": document.id})
                    self.dropped.append(Dropped(reject(document, why), size, is_held_out))
                else:
                    seen.add(document.id)
                    self.items.append(Item(document, size, is_held_out))
        self.items.sort(key=lambda item: (not item.held_out, item.document.id))

    def filter(self) -> None:
        """The stages of `mify.curation.stages`, in worker processes where there is enough for them."""
        items, self.items = self.items, []
        done = 0
        count = self.num_workers if len(items) > 4 * _CHUNK else 1
        with workers(count) as pool:
            groups = chunks((item.document for item in items), _CHUNK)
            for verdicts in pool.map(partial(examine_all, config=self.config), groups):
                for verdict in verdicts:
                    item = items[done]
                    item.document = verdict.apply(item.document)
                    self.redactions.update(verdict.redactions)
                    self._keep_or_drop(item, verdict.rejection)
                    done += 1
                self.progress("filter", done, len(items))

    def exact_duplicates(self) -> None:
        """By SHA-256 of the text as it is now: two files that differ only in an address are one after redaction."""
        items, self.items = self.items, []
        first: dict[str, Item] = {}
        for item in items:
            kept = first.setdefault(item.document.text_sha256, item)
            why = None if kept is item else _duplicate(stages.EXACT_DUPLICATES, "exact duplicate", kept, item, {})
            self._keep_or_drop(item, why)
        self.progress(stages.EXACT_DUPLICATES, len(items), len(items))

    def decontaminate(self) -> None:
        """Drops what shares an n-gram with a benchmark."""
        rules = self.config.decontamination
        if not rules.benchmarks:
            return
        from mify.curation.decontamination import NgramIndex, load_benchmark

        index = NgramIndex([load_benchmark(name) for name in rules.benchmarks], ngram=rules.ngram)
        self.benchmarks = index.report()
        items, self.items = self.items, []
        for done, item in enumerate(items, start=1):
            spans = index.match(item.document.text)
            self._keep_or_drop(item, overlap(spans) if spans else None)
            if done % 64 == 0 or done == len(items):
                self.progress(stages.DECONTAMINATION, done, len(items))

    def near_duplicates(self) -> None:
        """Drops what has a near-duplicate that stays; held-out documents are asked first, so they are what stays."""
        rules = self.config.near_duplicates
        if not rules.enabled or not self.items:
            return
        from mify.curation.minhash import near_duplicates

        items, self.items = self.items, []
        found = near_duplicates(
            [("0" if item.held_out else "1") + item.document.id for item in items],
            [item.document.text for item in items],
            jaccard_threshold=rules.jaccard_threshold,
            num_perm=rules.num_perm,
            ngram=rules.ngram,
            seed=rules.seed,
            verify=rules.verify,
            threads=self.num_workers,
            progress=partial(self.progress, stages.NEAR_DUPLICATES),
        )
        self.near_report = {"enabled": True, **found.report}
        removed = {int(index): (int(kept), float(jaccard)) for index, kept, jaccard in found.removed}
        for index, item in enumerate(items):
            why = None
            if index in removed:
                kept, jaccard = removed[index]
                evidence = {"jaccard": round(jaccard, 6)}
                why = _duplicate(stages.NEAR_DUPLICATES, "near duplicate", items[kept], item, evidence)
            self._keep_or_drop(item, why)

    def report(self) -> dict[str, Any]:
        """The whole report, after its totals were checked against what came in."""
        settings = to_plain(self.config)
        train = [item for item in self.items if not item.held_out]
        available = {
            domain: sum(item.document.num_bytes for item in train if item.document.domain == domain)
            for domain in to_plain(self.config.mixture)
        }
        findings = Findings()
        for drop in self.dropped:
            findings.add(drop.rejected)
        report = {
            "format": REPORT_FORMAT,
            "version": REPORT_VERSION,
            "config": settings,
            "config_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
            **account(self.items, self.dropped),
            "train": _composition(train),
            "held_out": _composition([item for item in self.items if item.held_out]),
            "redactions": dict(sorted(self.redactions.items())),
            "tools": _tools(self.config, self.items),
            "quality_rules": findings.rules(),
            "decontamination": self.benchmarks and {**self.benchmarks, "matches": findings.matches()},
            "near_duplicates": self.near_report,
            "mixture": mixture(available, to_plain(self.config.mixture)),
        }
        reconcile(report, self.num_in, self.bytes_in)
        return report

    def write(self, out: Path, report: dict[str, Any]) -> None:
        """Writes the files; the old report goes first and the new one comes last."""
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        (out / REPORT).unlink(missing_ok=True)
        held_out = [item.document for item in self.items if item.held_out]
        write_documents(out / DOCUMENTS, (item.document for item in self.items if not item.held_out))
        if held_out:
            write_documents(out / HELD_OUT, held_out)
        else:
            (out / HELD_OUT).unlink(missing_ok=True)
        write_rejected(out / REJECTED, (dropped.rejected for dropped in self.dropped))
        names = [name for name in (DOCUMENTS, HELD_OUT, REJECTED) if (out / name).exists()]
        report["files"] = {name: sha256_file(out / name) for name in names}
        write_json(out / REPORT, report)

    def _keep_or_drop(self, item: Item, why: Rejection | None) -> None:
        if why is None:
            self.items.append(item)
        else:
            self.dropped.append(Dropped(reject(item.document, why), item.num_bytes, item.held_out))


def _duplicate(stage: str, reason: str, kept: Item, item: Item, evidence: dict[str, Any]) -> Rejection:
    where = {"kept": kept.document.id, "kept_repo": kept.document.repo, "kept_path": kept.document.path}
    if kept.held_out and not item.held_out:
        reason += " of a held-out document"
    return Rejection(stage, reason, where | evidence)


def _tools(config: CurationConfig, items: Sequence[Item]) -> dict[str, Any]:
    """Which optional packages judged, and the kept documents of code whose syntax none did."""
    checked = ["python", *syntax.checked_languages(config.syntax)]
    unchecked = Counter(
        item.document.language
        for item in items
        if item.document.domain == "code" and item.document.language not in (*checked, *MARKUP_AND_DATA)
    )
    modules = {*syntax.modules(config.syntax)} | (
        {"detect_secrets"} if config.personal_data.asks_detect_secrets else set()
    )
    return {
        "syntax": {"checked": checked, "unchecked": dict(sorted(unchecked.items()))},
        "detect_secrets": config.personal_data.asks_detect_secrets,
        "versions": versions(modules),
    }


def _composition(items: Sequence[Item]) -> dict[str, Any]:
    """Documents and bytes as written, in all, by domain and by language."""

    def by(name: str) -> dict[str, Any]:
        values = sorted({getattr(item.document, name) for item in items})
        return {
            value: count(item.document.num_bytes for item in items if getattr(item.document, name) == value)
            for value in values
        }

    whole = count(item.document.num_bytes for item in items)
    return {**whole, "domains": by("domain"), "languages": by("language"), "licenses": by("license")}
