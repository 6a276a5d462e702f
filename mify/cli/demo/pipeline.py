"""Stages with stamps: a stage runs once for given inputs, and a killed run continues at the stage it had reached.

A stamp is written after a stage's outputs are in their place. It holds the stage's key (a hash of its settings and of
the outputs it was made from) and the content hash of what it made. A stage is skipped only where both still hold.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mify.errors import MifyError
from mify.files import atomic_file, make_folder, read_json, remove_leftovers, sha256_file, write_json

STAMP_FORMAT = "demo-stage"
STAMP_VERSION = 1


class Report(Protocol):
    """What a stage calls as it goes on: `progress(label, done, total)`."""

    def __call__(self, label: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Stage:
    """One step of the demo.

    Args:
        name: the stamp's name.
        title: what the progress bar says.
        settings: everything besides its inputs that decides what the stage makes (JSON values).
        needs: the names of the stages whose outputs it reads.
        outputs: files and folders it makes, relative to the demo's folder.
        run: does the work and returns a summary (JSON values) for the report.
        show: prints what a person should see of the summary, beside its line.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    needs: Sequence[str]
    outputs: Sequence[str]
    run: Callable[[Path, Report], dict[str, Any]]
    show: Callable[[Console, dict[str, Any]], None] | None = None


@dataclass(frozen=True)
class Stamp:
    """What a finished stage left: its key, its outputs' hashes, its summary and the seconds it took."""

    key: str
    outputs: dict[str, str]
    summary: dict[str, Any]
    seconds: float


def run_stages(stages: Sequence[Stage], folder: Path, console: Console) -> dict[str, Stamp]:
    """Runs the stages in order, skipping those that are done. Returns every stage's stamp."""
    make_folder(folder)
    remove_leftovers(folder)
    stamps: dict[str, Stamp] = {}
    columns = (
        TextColumn("[bold]{task.fields[title]:<11}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.description}"),
    )
    for stage in stages:
        key = _key(stage, stamps)
        done = _finished(stage, key, folder, console)
        if done is not None:
            stamps[stage.name] = done
            console.print(f"[green]✓[/] {stage.title:<11} [dim]done before ({done.seconds:.0f} s)[/]")
            continue
        _begin(stage, key, folder)
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task("", total=None, title=stage.title)

            def report(label: str, done: int, total: int, bars: Progress = bars, task: Any = task) -> None:
                bars.update(task, description=label, completed=done, total=total)

            started = time.monotonic()
            summary = stage.run(folder, report)
            # Seconds of a stage that was killed and continued count the part that ran last: they are shown as such.
            seconds = time.monotonic() - started
        stamp = Stamp(key, {name: content_hash(folder / name) for name in stage.outputs}, summary, seconds)
        _write(stage, stamp, folder)
        stamps[stage.name] = stamp
        line = str(summary.get("line", ""))
        console.print(f"[green]✓[/] {stage.title:<11} {seconds:5.0f} s  {line}", highlight=False)
        if stage.show is not None:
            stage.show(console, summary)
    return stamps


def content_hash(path: Path) -> str:
    """SHA-256 over the names and bytes of a file or of all files in a folder; "" where there is none."""
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        return ""
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _key(stage: Stage, stamps: Mapping[str, Stamp]) -> str:
    inputs = {name: stamps[name].outputs for name in stage.needs}
    text = json.dumps([STAMP_VERSION, stage.name, dict(stage.settings), inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stamp_path(stage: Stage, folder: Path) -> Path:
    return folder / "stages" / f"{stage.name}.json"


def _begin(stage: Stage, key: str, folder: Path) -> None:
    """Notes which key is at work. What another key left is removed: only the same work may be continued."""
    note = folder / "stages" / f"{stage.name}.started"
    if not note.exists() or note.read_text(encoding="utf-8") != key:
        for name in stage.outputs:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with atomic_file(note) as temporary:
            temporary.write_text(key, encoding="utf-8")


def _write(stage: Stage, stamp: Stamp, folder: Path) -> None:
    write_json(_stamp_path(stage, folder), {"format": STAMP_FORMAT, "version": STAMP_VERSION, **stamp.__dict__})


def _finished(stage: Stage, key: str, folder: Path, console: Console) -> Stamp | None:
    path = _stamp_path(stage, folder)
    if not path.exists():
        return None
    try:
        value = read_json(path)
        stamp = Stamp(value["key"], value["outputs"], value["summary"], value["seconds"])
        known = value["format"] == STAMP_FORMAT and value["version"] == STAMP_VERSION
    except (MifyError, KeyError, TypeError):
        console.print(f"[yellow]![/] {stage.title}: its stamp {path} is damaged, so it runs again")
        return None
    if not known or stamp.key != key:
        console.print(f"[yellow]![/] {stage.title}: its settings or inputs changed, so it runs again")
        return None
    for name, digest in stamp.outputs.items():
        if content_hash(folder / name) != digest:
            console.print(f"[yellow]![/] {stage.title}: {folder / name} was changed or removed, so it runs again")
            return None
    return stamp
