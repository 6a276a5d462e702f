"""Curation from documents to a corpus: every stage in its order, every rejected document kept beside with its reason.

    read → license → language → generated → quality → syntax → personal data → toxicity → exact duplicates
         → decontamination → near duplicates → mixture

The work is done in shards (`mify.curation.sharded.run`): same documents and configuration give the same files, byte for
byte, whatever the engine, the number of workers and the way the work is cut.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify import __version__
from mify.curation import syntax, toxicity
from mify.curation.config import CurationConfig, check_ranges
from mify.curation.decontamination import Benchmark, NgramIndex, load_benchmark
from mify.curation.documents import Document, Rejected
from mify.curation.engines import Engine, LocalEngine, Outcome
from mify.curation.extras import require, versions
from mify.curation.findings import Findings
from mify.curation.funnel import guard_sources, reconcile
from mify.curation.languages import MARKUP_AND_DATA
from mify.curation.locations import Location, is_url, join, names_in, opened, prepare, publish, remove, stat
from mify.curation.mixture import mixture
from mify.curation.outputs import OutputOptions, is_output
from mify.curation.report_page import write_page
from mify.curation.sharded.deciding import read_findings, read_tally
from mify.curation.sharded.run import FileInputs, ShardedRun, ShardOptions, Step
from mify.curation.sharded.work import work_folder
from mify.curation.tables import print_report
from mify.curation.tally import Tally
from mify.errors import MifyError
from mify.files import read_json, write_json
from mify.typed_tree import to_plain

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["CurationConfig", "CurationReport", "check_folder", "curate", "load_report"]

REPORT_FORMAT = "curation-report"
REPORT_VERSION = "2"
REPORT = "report.json"
PAGE = "report.html"

Progress = Callable[[str, int, int], None]
DEFAULTS = CurationConfig()
ONE_FILE = OutputOptions()
AUTOMATIC = ShardOptions()


@dataclass
class CurationReport:
    """What a curation did.

    Args:
        data: the report as it stands in report.json (no times: it is the same for the same input).
        seconds: wall-clock seconds per part of the run.
        folder: where the files lie; None after a dry run.
        tasks: {"all", "resumed", "lost_workers"}: tasks of the run, those that an earlier run had done, and workers
            that died, their tasks run again.
    """

    data: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)
    folder: Location | None = None
    tasks: dict[str, int] = field(default_factory=dict)

    def print(self, console: Console) -> None:
        """The funnel, sources, languages and composition as tables, and notes in words."""
        print_report(self.data, console)

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
    documents: Iterable[Document | Rejected] | FileInputs,
    out: Location | os.PathLike[str],
    config: CurationConfig = DEFAULTS,
    progress: Progress | None = None,
    *,
    held_out: Iterable[Document] = (),
    num_workers: int = 1,
    dry_run: bool = False,
    collection: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    output: OutputOptions = ONE_FILE,
    shards: ShardOptions = AUTOMATIC,
    work: Path | None = None,
    resume: bool = False,
) -> CurationReport:
    """Curates `documents` into the folder `out`: documents.parquet, held_out.parquet and clusters.parquet (where there
    are any), rejected.parquet, report.html, and last report.json: where it stands, the others are whole.

    Args:
        documents: for training; what a reader rejected may stand among them, and is counted. Or files, which the
            workers read.
        out: the folder or URL. Only these files in it are written; a folder with other files is refused.
        config: the rules.
        progress: called as progress(stage, done, total).
        held_out: for evaluation. They pass the same stages; a document for training that is an exact or near duplicate
            of one of them is removed.
        num_workers: processes, where no engine is given.
        dry_run: count and report, write nothing, and do not stop at the guard.
        collection: what the collector reports of its source; it is stored in the report.
        engine: where the work runs; it is left open.
        output: format and number of the output files.
        shards: how the work is cut; it changes no result.
        work: folder of the intermediate files, some twice the text; on a cluster it lies on a shared
            file system. Default: beside `out`. It is deleted at the end, and kept where the run fails or is killed.
        resume: go on where an earlier run over the same work folder stopped.

    Raises:
        MifyError: a value out of range, a foreign folder, no documents, a source that lost too much, a full disk,
            a changed configuration or input on resume.
    """
    if isinstance(documents, (str, os.PathLike)):
        raise MifyError(
            f"curate takes documents, not the path {os.fspath(documents)}",
            "give an iterable of Document, or the files in it: FileInputs(list_pieces([located(path)]))",
        )
    check_ranges(config)
    require("syntax.tree_sitter", config.syntax.tree_sitter, syntax.modules(config.syntax))
    require("personal_data.detect_secrets", config.personal_data.detect_secrets, ("detect_secrets",))
    if config.toxicity.enabled:
        toxicity.identity()  # raises where the classifier is missing
    # Loaded before anything is read: a missing file shall not end a run of hours.
    benchmarks = [load_benchmark(name) for name in config.decontamination.benchmarks]
    out = out if isinstance(out, str) and is_url(out) else Path(out)
    if not dry_run:
        check_folder(out)
    plan = {
        "mify": __version__,
        "config": to_plain(config),
        "benchmarks": {benchmark.name: benchmark.sha256 for benchmark in benchmarks},
        "inputs": "documents of the calling program",
        "shards": asdict(shards),
        "output": asdict(output),
    }
    if isinstance(documents, FileInputs):
        plan["inputs"] = {str(piece.location): [piece.kind, piece.source, piece.stamp] for piece in documents.pieces}
        plan["limits"], plan["split"] = documents.limits._asdict(), [documents.held_out, documents.seed]
    mine = engine or LocalEngine(num_workers)
    try:
        with _place_for_work(work, out, resume, dry_run) as folder, work_folder(folder, plan, resume=resume) as held:
            run = ShardedRun(folder, config, mine, shards, progress or (lambda stage, done, total: None))
            if isinstance(documents, FileInputs):
                run.read_files(documents)
            else:
                # The held-out ones come first: of two equal documents the first stays.
                run.read_entries(chain(((entry, True) for entry in held_out), ((entry, False) for entry in documents)))
            # What comes now is judged by its content: running again would not help.
            held.keep_after_error = run.num_in > 0
            if not run.num_in:
                raise MifyError("there are no documents to curate", "check the paths: every one was empty")
            run.process()
            report = _report(run, config, benchmarks)
            if collection is not None:
                report["collection"] = dict(collection)
            if not dry_run:
                held.keep_after_error = False
                guard_sources(report, config.guard.max_source_loss, config.guard.min_documents)
                held.keep_after_error = True
                _write(run, out, output, report)
    finally:
        if engine is None:
            mine.close()
    tasks = {"all": run.tasks, "resumed": run.resumed_tasks, "lost_workers": mine.lost_workers}
    return CurationReport(report, run.seconds, None if dry_run else out, tasks)


@contextmanager
def _place_for_work(work: Path | None, out: Location, resume: bool, dry_run: bool) -> Iterator[Path]:
    """The work folder: the one named, else beside `out`, else a temporary one, which goes in any case."""
    if work is not None:
        yield Path(work)
    elif not dry_run and not is_url(out):
        folder = Path(out).resolve()
        yield folder.with_name(f".{folder.name}.work")
    elif resume:
        raise MifyError("there is nothing to resume from", "name the folder of the stopped run with --work-folder")
    else:
        temporary = Path(tempfile.mkdtemp(prefix="mify-curation-"))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def load_report(folder: Location) -> dict[str, Any]:
    """The report of a finished curation.

    Raises:
        MifyError: there is none, or it is of another format or version.
    """
    place = join(folder, REPORT)
    if is_url(place) and stat(place) is not None:
        with opened(place) as file:
            report = json.load(file)
    else:
        report = read_json(place)
    if not isinstance(report, dict) or report.get("format") != REPORT_FORMAT:
        raise MifyError(f"{place} is no report of a curation", "give a folder that `mify curate` wrote")
    if report.get("version") != REPORT_VERSION:
        raise MifyError(
            f"{place} has version {report.get('version')!r}; this mify reads {REPORT_VERSION}",
            "use the mify that wrote it, or curate again",
        )
    return report


def check_folder(out: Location) -> None:
    """Raises `MifyError` where `out` is a file, or a folder with files that no curation wrote."""
    for name in names_in(out):
        known = name in (REPORT, PAGE) or is_output(name)
        if not known and not name.startswith((".documents.", ".held_out.", ".rejected.", ".clusters.", ".report.")):
            raise MifyError(f"the folder {out} holds other files ({name})", "give a new or empty folder with --out")


def _report(run: ShardedRun, config: CurationConfig, benchmarks: list[Benchmark]) -> dict[str, Any]:
    """The whole report, after its totals were checked against what came in."""
    settings = to_plain(config)
    tally = Tally(row for folder in run.decided.folders for row in read_tally(folder))
    findings = Findings()
    for folder in run.decided.folders:
        findings.merge(read_findings(folder))
    train = tally.kept(held_out=False).composition()
    # What is looked for; {} where nothing is.
    indexed = NgramIndex(benchmarks, ngram=config.decontamination.ngram).report() if benchmarks else {}
    available = {domain: train["domains"].get(domain, {"bytes": 0})["bytes"] for domain in settings["mixture"]}
    report = {
        "format": REPORT_FORMAT,
        "version": REPORT_VERSION,
        "config": settings,
        "config_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        **tally.account(),
        "train": train,
        "held_out": tally.kept(held_out=True).composition(),
        "redactions": run.redactions,
        "tools": _tools(config, tally.kept()),
        "quality_rules": findings.rules(),
        "decontamination": indexed and {**indexed, "matches": findings.matches()},
        "near_duplicates": run.near,
        "mixture": mixture(available, settings["mixture"]),
    }
    reconcile(report, run.num_in, run.bytes_in)
    return report


def _write(run: ShardedRun, out: Location, output: OutputOptions, report: dict[str, Any]) -> None:
    """Writes the files; the old report goes first and the new one comes last."""
    started = time.monotonic()
    names = {kind: output.names(kind) for kind in ("documents", "rejected")}
    for kind, count in (("held_out", "held_out"), ("clusters", "grouped")):
        if run.decided.total(count):
            names[kind] = output.names(kind)
    step = run.write([(kind, names[kind]) for kind in sorted(names)], output.format)
    prepare(out)
    remove(join(out, REPORT))
    report["files"] = {}
    for name, folder, outcome in _written(step, names):
        publish(Path(folder) / name, join(out, name))
        report["files"][name] = outcome.files[name][1]
    for name in names_in(out):
        if is_output(name) and name not in report["files"]:
            remove(join(out, name))
    for name, write in ((PAGE, write_page), (REPORT, write_json)):
        write(run.work / name, report)
        publish(run.work / name, join(out, name))
    run.seconds["write"] = time.monotonic() - started


def _written(step: Step, names: Mapping[str, list[str]]) -> Iterator[tuple[str, str, Outcome]]:
    """(name, folder, outcome) of every output file."""
    ordered = [name for kind in sorted(names) for name in names[kind]]
    yield from zip(ordered, step.folders, step.outcomes, strict=True)


def _tools(config: CurationConfig, kept: Tally) -> dict[str, Any]:
    """Which optional packages judged, and the kept documents of code whose syntax none did."""
    checked = ["python", *syntax.checked_languages(config.syntax)]
    unchecked: Counter[str] = Counter()
    for group, sums in kept:
        if group.domain == "code" and group.language not in (*checked, *MARKUP_AND_DATA):
            unchecked[group.language] += sums.documents
    modules = {*syntax.modules(config.syntax)} | (
        {"detect_secrets"} if config.personal_data.asks_detect_secrets else set()
    )
    return {
        "syntax": {"checked": checked, "unchecked": dict(sorted(unchecked.items()))},
        "detect_secrets": config.personal_data.asks_detect_secrets,
        "versions": versions(modules) | (toxicity.identity() if config.toxicity.enabled else {}),
    }
