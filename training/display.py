"""What people see while it runs: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text


def duration(seconds: float) -> str:
    """`3:05`, `2:03:05`, `4 d 2 h`, `7 years`."""
    whole = int(max(0.0, seconds))
    if whole >= 730 * 86_400:
        return f"{whole // 31_557_600:,} years"
    if whole >= 172_800:
        return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def status_line(step: int, steps: int, record: dict[str, Any]) -> str:
    """loss, tokens/s, MFU where the peak is known, learning rate, gradient norm, memory, time to the end."""
    clock = record.get("time", {})
    parts = [
        f"step {step}/{steps}",
        f"loss {record['loss']:.4f}" if record.get("loss") is not None else "loss not finite",
        f"{clock.get('tokens_per_second', 0):,.0f} tok/s",
        f"lr {record['learning_rate']:.2e}",
        f"|g| {record['gradient_norm']:.2f}" if record.get("gradient_norm") is not None else "|g| not finite",
    ]
    if record.get("reward") is not None:
        parts.insert(2, f"reward {record['reward']:.3f}  solved {record['solved']:.1%}")
    if record.get("margin") is not None:
        parts.insert(2, f"margin {record['margin']:.3f}  accuracy {record['accuracy']:.1%}")
    if clock.get("mfu") is not None:
        parts.insert(3, f"MFU {clock['mfu']:.1%}")
    if clock.get("memory_bytes") is not None:
        parts.append(f"{clock['memory_bytes'] / 2**30:.1f} GiB")
    if clock.get("eta_seconds") is not None:
        parts.append(f"ETA {duration(clock['eta_seconds'])}")
    return "  ".join(parts)


class Display:
    """The default progress: a live line on a terminal; elsewhere a line every `seconds` and at the end."""

    def __init__(self, *, seconds: float = 10.0) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live = Live(Text(""), console=self.console, refresh_per_second=4) if sys.stderr.isatty() else None
        self.seconds, self.printed = seconds, 0.0

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def say(self, message: str) -> None:
        """A line that stays."""
        self.console.print(message, markup=False)

    def __call__(self, step: int, steps: int, record: dict[str, Any]) -> None:
        if "held_out_bits_per_byte" in record:
            scores = "  ".join(f"{domain} {value:.4f}" for domain, value in record["held_out_bits_per_byte"].items())
            exact = record.get("infilling_exact_match")
            lines = "" if exact is None else f"  infilled lines {exact:.1%}"
            self.say(f"step {step}/{steps}  held-out bits per byte: {scores}{lines}")
            return
        if "held_out_solved" in record:
            scores = "  ".join(f"{how} {value:.1%}" for how, value in record["held_out_solved"].items())
            self.say(f"step {step}/{steps}  held-out tasks solved: {scores}")
            return
        if "event" in record:
            self.say(f"step {step}/{steps}  {record['event']}: {record.get('reason', '')}")
            return
        line = status_line(step, steps, record)
        if self.live:
            self.live.update(Text(line))
        elif step == steps or time.monotonic() - self.printed >= self.seconds:
            self.printed = time.monotonic()
            self.console.print(line, markup=False)
