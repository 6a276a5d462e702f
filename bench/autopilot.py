"""The GPU autopilot behind `bench/gpu.sh OUT`: as much as ten minutes allow, what is least known first, never all lost.

Parts run one after the other in processes of their own, each under a time limit, so that one that fails or hangs costs
its own time alone. What is done is remembered in a work folder: called again, it goes on where it stopped. Correctness
comes
first: while it fails, timing goes on but every summary says so.

    summary.json     parts with their verdicts, rows by status, what failed and the command that runs it again
    results.tar.gz   the rows, pictures and logs of all parts; give it as second argument on a fresh machine to go on
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# The whole call, and what is kept of it for the summary.
BUDGET_SECONDS, RESERVE_SECONDS = 570.0, 15.0
TRIES = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One process.

    Args:
        command: what is run; "{json}" is replaced by the file for its rows.
        limit: seconds it may take; it is not begun with less than `least` left.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    least: float = 20.0
    needs: tuple[str, ...] = ()


def _bench(name: str, suite: str, *cases: str, limit: float, least: float = 20.0) -> Part:
    selected = [word for case in cases for word in ("--case", case)]
    command = (sys.executable, "-m", "mify", "bench", suite, *selected, "--rounds", "20", "--json", "{json}")
    return Part(name, command, limit, least)


def plan() -> list[Part]:
    """The parts, by what is least known for each second."""
    tests = ("-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", "-m", "gpu")
    return [
        Part("correctness", (sys.executable, *tests, "tests/kernels"), limit=180, least=60),
        _bench("decode-attention", "kernels", "decode-*", limit=90),
        _bench("element-wise", "kernels", "norm", "rope", "swiglu", limit=120),
        _bench("packed-attention", "kernels", "gqa-packed-*", limit=120),
        _bench("linear-ce", "kernels", "linear-ce", limit=90),
        _bench("long-attention", "kernels", "gqa-long-*", limit=90),
        Part("tune-decode", (sys.executable, "-m", "mify.bench.tune_decode", "{json}"), limit=120),
        _bench("train-step", "train", "2.5b-8k-bf16", limit=180, least=60),
        _bench("decode-engine", "decode", limit=240, least=90),
        _bench("fp8", "fp8", limit=240, least=90),
        _bench("static", "kernels", "static-*", limit=240, least=60),
    ]


@dataclass(slots=True)
class Outcome:
    """How a part ended: "done" (its targets met), "missed" (ran, targets missed), "failed", "out of time", "not
    begun".
    """

    status: str = "not begun"
    seconds: float = 0.0
    tries: int = 0
    detail: str = ""
    command: str = ""

    @property
    def finished(self) -> bool:
        return self.status in ("done", "missed") or self.tries >= TRIES


@dataclass(slots=True)
class State:
    """What is remembered between calls."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> State:
        if not path.is_file():
            return cls()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls({name: Outcome(**outcome) for name, outcome in content["outcomes"].items()})
        except (ValueError, KeyError, TypeError) as error:
            print(f"{path} cannot be read ({error}): beginning anew", flush=True)
            return cls()

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".tmp")
        content = {"outcomes": {name: asdict(outcome) for name, outcome in self.outcomes.items()}}
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
        temporary.replace(path)


def run_part(part: Part, work: Path, seconds: float, environment: Mapping[str, str]) -> tuple[str, str]:
    """Runs a part for at most `seconds`. Returns (status, detail); its output goes to a log in `work`."""
    rows = work / f"{part.name}.json"
    command = [word.replace("{json}", str(rows)) for word in part.command]
    log = work / f"{part.name}.log"
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, env=dict(environment), start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return "out of time", f"stopped after {seconds:.0f} s"
    if code == 0:
        return "done", ""
    tail = " | ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])[-400:]
    # A suite ends with 1 when a target is missed: its rows are there all the same.
    if code == 1 and rows.is_file():
        return "missed", tail
    return "failed", f"exit code {code}: {tail}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and those it started."""
    for signal in (15, 9):
        try:
            os.killpg(process.pid, signal)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=5)
            break
        except subprocess.TimeoutExpired:
            continue


def fly(
    out: Path,
    work: Path,
    parts: Sequence[Part],
    *,
    budget: float = BUDGET_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Runs what is not finished until the budget is spent; writes the summary after every part. Returns the summary."""
    started = clock()
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    state = State.load(work / "state.json")
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
        "NO_COLOR": "1",
        "COLUMNS": "160",
    }
    summary = summarize(parts, state, work)
    for part in parts:
        outcome = state.outcomes.setdefault(part.name, Outcome())
        if outcome.finished:
            continue
        left = budget - RESERVE_SECONDS - (clock() - started)
        if left < part.least:
            continue
        print(f"[{clock() - started:5.0f} s] {part.name}", flush=True)
        outcome.tries += 1
        outcome.command = " ".join(part.command)
        begun = clock()
        outcome.status, outcome.detail = run_part(part, work, min(part.limit, left), environment)
        outcome.seconds = round(clock() - begun, 1)
        state.save(work / "state.json")
        summary = summarize(parts, state, work)
        _write(out, work, summary)
    _write(out, work, summary)
    return summary


def summarize(parts: Sequence[Part], state: State, work: Path) -> dict[str, Any]:
    """What is known so far: the parts, the rows by status, the failed rows."""
    counts: dict[str, int] = {}
    failed, machine = [], None
    for part in parts:
        path = work / f"{part.name}.json"
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # cut off while it was written: its part did not finish, and says so
        rows = content.get("rows", []) if isinstance(content, dict) else []
        machine = machine or {key: content.get(key) for key in ("device", "versions", "commit")} if rows else machine
        for row in rows:
            counts[row["status"]] = counts.get(row["status"], 0) + 1
            if row["status"] == "fail":
                failed.append(
                    {key: row[key] for key in ("case", "impl", "metric", "value", "unit", "target", "note", "repro")}
                )
    outcomes = {part.name: asdict(state.outcomes.get(part.name, Outcome())) for part in parts}
    correctness = state.outcomes.get("correctness", Outcome()).status
    return {
        "format": "mify.gpu",
        "version": 1,
        "correct": correctness == "done",
        "correctness": correctness,
        "complete": all(state.outcomes.get(part.name, Outcome()).finished for part in parts),
        "parts": outcomes,
        "rows": counts,
        "failed": failed,
        "machine": machine,
    }


def _write(out: Path, work: Path, summary: Mapping[str, Any]) -> None:
    text = json.dumps(summary, indent=2) + "\n"
    for folder in (work, out):
        (folder / "summary.json").write_text(text, encoding="utf-8")
    temporary = out / ".results.tar.gz"
    with tarfile.open(temporary, "w:gz") as archive:
        for path in sorted(work.iterdir()):
            if path.is_file() and path.stat().st_size < 8 << 20:
                archive.add(path, arcname=path.name)
    temporary.replace(out / "results.tar.gz")


def unpack(archive: Path, work: Path) -> None:
    """Brings back the state of an earlier call from its results.tar.gz, plain files only."""
    work.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as packed:
        for member in packed:
            if member.isfile() and Path(member.name).name == member.name and not (work / member.name).exists():
                source = packed.extractfile(member)
                if source is not None:
                    (work / member.name).write_bytes(source.read())


def table(summary: Mapping[str, Any]) -> str:
    """A short table: a line a part, then what failed."""
    lines = [f"{'part':<18} {'status':<12} {'seconds':>8}  detail"]
    for name, outcome in summary["parts"].items():
        lines.append(f"{name:<18} {outcome['status']:<12} {outcome['seconds']:>8.1f}  {outcome['detail'][:90]}")
    lines.append(
        "rows: " + (", ".join(f"{count} {status}" for status, count in sorted(summary["rows"].items())) or "none")
    )
    for row in summary["failed"][:20]:
        reached = f"{row['value']} {row['unit']}, target {row['target']}"
        lines.append(f"  missed {row['case']} {row['metric']}: {reached} {row['note']}")
    if not summary["correct"]:
        lines.append(f"correctness: {summary['correctness']}. No figure above may be quoted until it is done.")
    if not summary["complete"]:
        lines.append("not complete: call it again to go on")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """`python -m mify.bench.autopilot OUT [EARLIER.tar.gz]`. Exit code 1 where correctness failed."""
    if not 1 <= len(arguments) <= 2:
        print("usage: bench/gpu.sh OUT [EARLIER-results.tar.gz]", file=sys.stderr)
        return 2
    work = Path(os.environ.get("MIFY_GPU_WORK", "/tmp/mify-gpu"))
    if len(arguments) == 2:
        unpack(Path(arguments[1]), work)
    # gpu.sh says when it began: what it took to build counts as well.
    spent = max(0.0, time.time() - float(os.environ.get("MIFY_GPU_STARTED", time.time())))
    summary = fly(Path(arguments[0]), work, plan(), budget=BUDGET_SECONDS - spent)
    print(table(summary), flush=True)
    return 1 if summary["correctness"] == "failed" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
