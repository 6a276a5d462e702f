"""The GPU autopilot behind `bench/gpu.sh OUT`: as much as ten minutes allow, what is least known first, never all lost.

Parts run one after the other in processes of their own, each under a time limit, so that one that fails or hangs costs
its own time alone, and of that only its last case. What is done is remembered in a work folder: called again, it goes
on where it stopped. Correctness comes first: while it fails, timing goes on but every summary says so. What missed its
target is tuned, and timed again with what won.

    summary.json     parts with their verdicts, rows by status, what failed and the command that runs it again
    results.tar.gz   the rows, pictures and logs of all parts; give it as second argument on a fresh machine to go on.
                     measured.json in it, where kernels were tuned, is the table to commit as kernels/measured.json.

MIFY_GPU_DRY_RUN=1 goes through all of it on a machine without a GPU: small inputs, nothing tuned, and a summary that
says so. MIFY_GPU_BUDGET sets the seconds of a call, MIFY_GPU_WORK where the work folders lie. Each state of the code,
and each Python, torch and Triton, has one of its own: what older code did is not taken for done.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

# The whole call, and what is kept of it for the summary.
BUDGET_SECONDS, RESERVE_SECONDS = 570.0, 15.0
TRIES = 2
CORRECTNESS = ("tests/kernels", "tests/test_backends.py", "tests/engine")


@dataclass(frozen=True, slots=True)
class Part:
    """One process.

    Args:
        command: what is run; "{json}" is replaced by the file for its rows, "{work}" by the work folder, "{missed}" by
            the cases that missed a target.
        limit: seconds it may take; it is not begun with less than `least` left.
        if_missed: patterns of cases; where none of them has missed a target there is nothing to do.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    least: float = 20.0
    if_missed: tuple[str, ...] = ()


def plan(dry_run: bool = False) -> list[Part]:
    """The parts, by what is least known for each second; those of suites that this mify does not carry are left out."""
    effort = ("--quick", "--rounds", "1") if dry_run else ("--rounds", "20")

    def bench(name: str, suite: str, *cases: str, limit: float, least: float = 20.0) -> list[Part]:
        if util.find_spec(f"mify.bench.bench_{suite}") is None:
            return []
        selected = [word for case in cases for word in ("--case", case)]
        command = (sys.executable, "-m", "mify", "bench", suite, *selected, *effort, "--json", "{json}")
        return [Part(name, command, limit, least)]

    tests = ["-m", "pytest", "-q", "--maxfail=10", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    if util.find_spec("xdist") is not None:
        tests += ["-n", "6"]  # compiling is most of the time
    tuned = ("norm*", "rope", "swiglu*", "linear-ce", "gqa-*")
    return [
        Part("correctness", (sys.executable, *tests, "-m", "gpu", *CORRECTNESS), limit=200, least=60),
        *bench("decode-attention", "kernels", "decode-*", limit=90),
        *bench("packed-attention", "kernels", "gqa-packed-*", limit=150),
        *bench("norm", "kernels", "norm", "norm-residual", limit=100),
        *bench("fp8-epilogues", "kernels", "*-fp8-one", "*-fp8-both*", limit=80),
        *bench("rope-swiglu", "kernels", "rope", "swiglu", limit=100),
        *bench("linear-ce", "kernels", "linear-ce", limit=90),
        *bench("long-attention", "kernels", "gqa-long-*", limit=100),
        *bench("fim-pack", "kernels", "fim-pack", limit=60),
        Part("tune-decode", (sys.executable, "-m", "mify.bench.tune_decode", "{json}"), 120, if_missed=("decode-*",)),
        Part("tune", (sys.executable, "-m", "mify.bench.tune_kernels", "{json}", "{missed}"), 240, 60, tuned),
        Part("again", (sys.executable, "-m", "mify.bench.autopilot", "--again", "{work}", "{missed}"), 180, 45, tuned),
        *bench("train-step", "train", "2.5b-8k-bf16", limit=180, least=60),
        *bench("decode-engine", "decode", limit=240, least=90),
        *bench("fp8", "fp8", limit=240, least=90),
        *bench("static", "kernels", "static-*", limit=240, least=60),
    ]


@dataclass(slots=True)
class Outcome:
    """How a part ended: "done" (its targets met), "missed" (ran, targets missed), "failed", "out of time", "not needed"
    (nothing missed that it could mend), "not begun".
    """

    status: str = "not begun"
    seconds: float = 0.0
    tries: int = 0
    detail: str = ""
    command: str = ""

    @property
    def finished(self) -> bool:
        return self.status in ("done", "missed", "not needed") or self.tries >= TRIES


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


def run_part(
    part: Part, work: Path, seconds: float, environment: Mapping[str, str], missed: Sequence[str] = ()
) -> tuple[str, str]:
    """Runs a part for at most `seconds`. Returns (status, detail); its output goes to a log in `work`."""
    rows = work / f"{part.name}.json"
    command = []
    for word in part.command:
        filled = word.replace("{json}", str(rows)).replace("{work}", str(work))
        command += list(missed) if word == "{missed}" else [filled]
    log = work / f"{part.name}.log"
    earlier = rows.read_bytes() if rows.is_file() else b""
    rows.unlink(missing_ok=True)
    status, detail = _run(command, rows, log, seconds, environment)
    if earlier and len(_rows(rows)) < len(_parsed(earlier)):
        rows.write_bytes(earlier)  # the first try came further
    return status, detail


def _run(command: list[str], rows: Path, log: Path, seconds: float, environment: Mapping[str, str]) -> tuple[str, str]:
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, env=dict(environment), start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return "out of time", f"stopped after {seconds:.0f} s with {len(_rows(rows))} rows"
    if code == 0:
        return "done", ""
    tail = " | ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])[-400:]
    # A suite ends with 1 when a target is missed: its rows are there all the same.
    if code == 1 and rows.is_file():
        return "missed", tail
    return "failed", f"exit code {code}: {tail}"


def _rows(path: Path) -> list[dict[str, Any]]:
    return _parsed(path.read_bytes()) if path.is_file() else []


def _parsed(text: bytes) -> list[dict[str, Any]]:
    """The rows of a result; none where it was cut off while it was written, as what was stopped may be."""
    try:
        content = json.loads(text)
    except ValueError:
        return []
    rows = content.get("rows", []) if isinstance(content, dict) else []
    return [row for row in rows if isinstance(row, dict)]


def missed_cases(parts: Sequence[Part], work: Path, patterns: Sequence[str]) -> list[str]:
    """The cases that missed a target in what was measured so far, of those that match."""
    failed = [row["case"] for part in parts for row in _rows(work / f"{part.name}.json") if row.get("status") == "fail"]
    wanted = [case for case in failed if any(fnmatch.fnmatchcase(case, pattern) for pattern in patterns)]
    return list(dict.fromkeys(wanted))


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
        missed = missed_cases(parts, work, part.if_missed)
        if part.if_missed and not missed:
            before = parts[: parts.index(part)]
            if all(state.outcomes[other.name].finished for other in before):
                outcome.status = "not needed"
                state.save(work / "state.json")
            continue
        if left < part.least:
            continue
        print(f"[{clock() - started:5.0f} s] {part.name}", flush=True)
        outcome.tries += 1
        outcome.command = " ".join(part.command)
        begun = clock()
        outcome.status, outcome.detail = run_part(part, work, min(part.limit, left), environment, missed)
        outcome.seconds = round(clock() - begun, 1)
        state.save(work / "state.json")
        summary = summarize(parts, state, work)
        _write(out, work, summary)
    summary = summarize(parts, state, work)
    _write(out, work, summary)
    return summary


def summarize(parts: Sequence[Part], state: State, work: Path) -> dict[str, Any]:
    """What is known so far: the parts, the rows by status, the failed rows."""
    counts: dict[str, int] = {}
    failed, machine = [], None
    for part in parts:
        path = work / f"{part.name}.json"
        rows = _rows(path)
        if rows and machine is None:
            content = json.loads(path.read_text(encoding="utf-8"))
            machine = {key: content.get(key) for key in ("device", "versions", "commit")}
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
        "dry_run": _dry_run(),
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


_CODE = frozenset({".py", ".cpp", ".hpp", ".cu", ".cuh", ".toml", ".sh"})


def identity() -> str:
    """Of what is measured: a digest of the checkout's code, the versions it runs with, and whether this is a dry run.

    The measured table is left out: tuning writes it, and goes on.
    """
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(repr((sys.version_info[:2], _dry_run())).encode())
    for name in ("torch", "triton"):
        digest.update((metadata.version(name) if util.find_spec(name) else "none").encode())
    for folder in ("csrc", "bindings", "kernels", "mify", "training", "bench"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in _CODE:
                digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def unpack(archive: Path, work: Path, code: str) -> None:
    """Brings back the state of an earlier call from its results.tar.gz, plain files only; of other code it is left."""
    work.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as packed:
        written = packed.extractfile("code") if "code" in packed.getnames() else None
        if written is None or written.read().decode() != code:
            print(f"{archive} is of other code or versions: begun anew", flush=True)
            return
        for member in packed:
            if member.isfile() and Path(member.name).name == member.name and not (work / member.name).exists():
                source = packed.extractfile(member)
                if source is not None:
                    (work / member.name).write_bytes(source.read())


def table(summary: Mapping[str, Any]) -> str:
    """A short table: a line a part, then what failed."""
    lines = ["DRY RUN: no GPU, small inputs; nothing here was measured on one"] if summary["dry_run"] else []
    lines.append(f"{'part':<18} {'status':<12} {'seconds':>8}  detail")
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


def _dry_run() -> bool:
    return os.environ.get("MIFY_GPU_DRY_RUN", "") not in ("", "0")


def again(work: Path, cases: Sequence[str]) -> int:
    """Takes what tuning found into the table of this checkout, which joins the results, and times those cases again."""
    found = work / "tune.json"
    if not found.is_file():
        print(f"{found} is not there: nothing was tuned", file=sys.stderr)
        return 2
    subprocess.run([sys.executable, "-m", "mify.kernels.measured", str(found)], check=True)
    shutil.copy(Path(__file__).resolve().parent.parent / "kernels" / "measured.json", work / "measured.json")
    selected = [word for case in cases for word in ("--case", case)]
    command = [sys.executable, "-m", "mify", "bench", "kernels", *selected, "--rounds", "20"]
    return subprocess.run([*command, "--json", str(work / "again.json")], check=False).returncode


def main(arguments: Sequence[str]) -> int:
    """`python -m mify.bench.autopilot OUT [EARLIER.tar.gz]`. Exit code 1 where correctness failed."""
    if len(arguments) > 2 and arguments[0] == "--again":
        return again(Path(arguments[1]), arguments[2:])
    if not 1 <= len(arguments) <= 2:
        print("usage: bench/gpu.sh OUT [EARLIER-results.tar.gz]", file=sys.stderr)
        return 2
    code = identity()
    work = Path(os.environ.get("MIFY_GPU_WORK", "/tmp/mify-gpu")) / code
    if len(arguments) == 2:
        unpack(Path(arguments[1]), work, code)
    work.mkdir(parents=True, exist_ok=True)
    (work / "code").write_text(code, encoding="utf-8")
    # gpu.sh says when it began: what it took to build counts as well.
    spent = max(0.0, time.time() - float(os.environ.get("MIFY_GPU_STARTED", time.time())))
    budget = float(os.environ.get("MIFY_GPU_BUDGET", BUDGET_SECONDS))
    summary = fly(Path(arguments[0]), work, plan(_dry_run()), budget=budget - spent)
    print(table(summary), flush=True)
    return 1 if summary["correctness"] == "failed" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
