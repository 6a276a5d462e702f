"""What is run and what comes of it: limits, a program with its tests, a verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Form = Literal["joint", "auto", "apart"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    Args:
        wall_s: seconds by the clock, for programs that wait; over it, the program is run once more alone.
        cpu_s: CPU seconds of each process, rounded up to whole ones: what decides for programs that compute, however
            loaded the machine is.
        memory_bytes: address space of each process.
        processes: processes and threads of the program together.
        output_bytes: bytes on stdout and stderr together.
        file_bytes: size of one file.
        scratch_bytes: size of the private /tmp.
    """

    wall_s: float = 20.0
    cpu_s: float = 5.0
    memory_bytes: int = 1 << 30
    processes: int = 16
    output_bytes: int = 1 << 20
    file_bytes: int = 16 << 20
    scratch_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Program:
    """One solution with its tests; it passes when the tests run to their last line without an exception.

    Args:
        source: the solution.
        tests: what stands behind it; in the form `apart`, in a process of its own.
        setup: for `apart`: what the benchmark itself gives the tests (imports, helpers), run before them.
        entry_points: for `apart`: names that the tests must take from the solution even where `setup` has them.
    """

    id: str
    source: str = field(repr=False)
    tests: str = field(default="", repr=False)
    setup: str = field(default="", repr=False)
    entry_points: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one program ended.

    Args:
        status: "passed"; "failed" (an exception, named in `detail`); "exited" (left before its tests ended); "timeout";
            "memory"; "output" (too much of it); "crashed" (a signal); "forged" (wrote to the verdict's pipe); "broke"
            (took its worker down); "undecided" (apart, its tests need more than plain data).
        apart: judged in the two-process form.
        retried: run a second time, alone.
    """

    id: str
    status: str
    detail: str = ""
    output: str = field(default="", repr=False)
    seconds: float = 0.0
    apart: bool = False
    retried: bool = False

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
