"""What a suite is given (`Options`, `Targets`), what is recorded beside its rows (`machine`), and how it is found."""

from __future__ import annotations

import fnmatch
import importlib
import os
import platform
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

from mify.bench.rows import Row, Target
from mify.errors import MifyError

# Suite → the column of targets.toml that holds on this machine: "cpu", or "gpu" for the name of the GPU.
SUITES: dict[str, str] = {
    "curation": "cpu",
    "data": "cpu",
    "kernels": "gpu",
    "fp8": "gpu",
    "decode": "gpu",
    "train": "gpu",
    "eval": "cpu",
}
_TARGETS_FILE = Path(__file__).with_name("targets.toml")
_DEVICE_COLUMNS = ("cpu", "h100", "h200")
# Whose versions stand beside every result, where they are installed.
_VERSIONED = (
    "mify", "torch", "triton", "numpy", "tokenizers", "transformers", "litgpt", "datasketch", "rensa", "daft",
    "flash-attn", "flash-attn-3", "flash-attn-4", "quack-kernels", "liger-kernel", "transformer-engine", "xllamacpp",
)  # fmt: skip


class Targets:
    """The targets that hold on one device.

    Args:
        table: suite → case pattern → metric → {column: "ratio >= 1.1", …, "source": "…"}, as in targets.toml.
        column: "cpu", "h100", "h200", or another GPU's name, for which nothing is defined.
    """

    def __init__(self, table: Mapping[str, Any], column: str) -> None:
        self._table = table
        self.column = column

    @classmethod
    def load(cls, column: str, path: Path = _TARGETS_FILE) -> Targets:
        """Reads and checks a targets file; a target that cannot be read raises `MifyError` naming it."""
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise MifyError(f"{path} is not valid TOML ({error})", "mend the line it names") from None
        for suite, cases in table.items():
            if suite not in SUITES:
                raise MifyError(f"{path}: unknown suite {suite!r}", f"use one of {', '.join(SUITES)}")
            for case, metrics in cases.items():
                for metric, columns in metrics.items():
                    where = f'{path}: [{suite}."{case}"."{metric}"]'
                    if not columns.get("source"):
                        raise MifyError(f"{where} has no source", "say where the figure comes from")
                    for name, text in columns.items():
                        if name != "source" and name not in _DEVICE_COLUMNS:
                            raise MifyError(
                                f"{where}: unknown column {name!r}", f"use one of {', '.join(_DEVICE_COLUMNS)}"
                            )
                        if name != "source":
                            Target.parse(text)
        return cls(table, column)

    def find(self, suite: str, case: str, metric: str) -> Target | None:
        """The target of a figure on this device, or None. A name's own entry goes before a pattern ("packed-*")."""
        for metrics in _matching(self._table.get(suite, {}), case):
            for columns in _matching(metrics, metric):
                # The nearest entry decides: where it has no column for this device, no other's figure is borrowed.
                text = columns.get(self.column)
                return None if text is None else Target.parse(text, columns["source"])
        return None


def _matching(table: Mapping[str, Any], name: str) -> list[Any]:
    """The entry of that name first, then those whose pattern it matches, in the order of the file."""
    exact = [table[name]] if name in table else []
    return exact + [entry for key, entry in table.items() if key != name and fnmatch.fnmatchcase(name, key)]


@dataclass(frozen=True, slots=True)
class Options:
    """What `mify bench SUITE` passes to `run`.

    Args:
        quick: small inputs, few rounds: the whole suite within about a minute on one core.
        rounds: interleaved rounds a case.
        cases: patterns of case names to run; empty for all.
        threads: for suites that scale with threads.
        seed: of generated inputs.
        data: a folder of real inputs where a suite can use one, else None.
        say: reports progress. save: keeps the rows so far, so that a suite that is stopped loses only its last case.
    """

    suite: str
    quick: bool = False
    rounds: int = 5
    cases: tuple[str, ...] = ()
    threads: int = 1
    seed: int = 0
    data: Path | None = None
    targets: Targets = field(default_factory=lambda: Targets({}, "cpu"))
    say: Callable[[str], None] = lambda text: None
    save: Callable[[list[Row]], None] = lambda rows: None

    def selected(self, case: str) -> bool:
        return not self.cases or any(fnmatch.fnmatchcase(case, pattern) for pattern in self.cases)

    def repro(self, case: str) -> str:
        """The command that measures this case again."""
        parts = ["mify", "bench", self.suite, "--case", f"'{case}'", "--rounds", str(self.rounds)]
        if self.quick:
            parts.append("--quick")
        if self.threads != 1:
            parts += ["--threads", str(self.threads)]
        if self.seed:
            parts += ["--seed", str(self.seed)]
        if self.data is not None:
            parts += ["--data", str(self.data)]
        return " ".join(parts)


def available() -> tuple[str, ...]:
    """The suites that this version carries, in the order of `SUITES`."""
    return tuple(suite for suite in SUITES if util.find_spec(f"mify.bench.bench_{suite}") is not None)


def load_suite(name: str) -> ModuleType:
    """The module of a suite. An unknown one, or one this installation does not carry, raises `MifyError`."""
    if name not in SUITES:
        raise MifyError(f"there is no suite {name!r}", f"use one of {', '.join(SUITES)}")
    if name not in available():
        raise MifyError(f"the suite {name!r} is not in this version of mify", f"use one of {', '.join(available())}")
    return importlib.import_module(f"mify.bench.bench_{name}")


def target_column(suite: str) -> str:
    """The column of targets.toml for this suite on this machine."""
    if SUITES[suite] == "cpu":
        return "cpu"
    from mify.hardware import gpus

    found = gpus()
    if not found:
        return "cpu"
    name = found[0].name.lower()
    return next((column for column in ("h100", "h200") if column in name), name)


def machine() -> dict[str, Any]:
    """What the rows were measured on: {"device", "versions", "commit"}."""
    from mify.hardware import cpu, gpus

    processor = cpu()
    device: dict[str, Any] = {
        "cpu": processor.name,
        "cores": processor.cores,
        "memory_bytes": processor.memory_bytes,
        "system": f"{platform.system()} {platform.machine()}",
        "gpus": [gpu.as_dict() for gpu in gpus()],
    }
    return {"device": device, "versions": versions(), "commit": commit()}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str:
    """The commit of the checkout that this mify runs from ("+" behind it where files differ), or "unknown"."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return os.environ.get("MIFY_COMMIT", "unknown")
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def run_suite(name: str, options: Options) -> list[Row]:
    """Runs one suite; a pattern that selects no case raises `MifyError` before anything is timed."""
    module = load_suite(name)
    if options.cases and not any(options.selected(case) for case in module.CASES):
        raise MifyError(
            f"no case of the suite {name!r} matches {', '.join(options.cases)}", f"see `mify bench {name} --list`"
        )
    rows: list[Row] = module.run(options)
    return rows
