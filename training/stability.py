"""What to do with a step whose numbers are wrong: take, skip, go back. A pure state machine, equal on all ranks."""

from __future__ import annotations

import enum
import math
import statistics
from collections import deque
from typing import Any

from .config import StabilitySection


class Verdict(enum.Enum):
    """What the trainer does with the gradient it has."""

    TAKE = "take"
    SKIP = "skip"  # the loss or the gradient is not finite: no update, the samples are logged
    ROLL_BACK = "roll back"  # it goes on being wrong: back to the last checkpoint, past these samples


class Guard:
    """Judges every step by its global loss and gradient norm.

    A spike is a loss above median + spike_factor * max(1.4826 MAD, 1% of the median) of the last `spike_window` taken
    losses (the MAD scaled to a standard deviation, Rousseeuw & Croux 1993). It is taken unless `spike_rollback`.
    """

    def __init__(self, config: StabilitySection) -> None:
        self.config = config
        self.skips = 0  # consecutive non-finite steps
        self.spikes = 0  # consecutive spikes
        self.is_spike = False  # the last step judged
        self.history: deque[float] = deque(maxlen=config.spike_window)

    def judge(self, loss: float, gradient_norm: float) -> Verdict:
        self.is_spike = False
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self.skips += 1
            return Verdict.ROLL_BACK if self.skips >= self.config.max_skips else Verdict.SKIP
        self.skips = 0
        self.is_spike = len(self.history) == self.history.maxlen and loss > self.threshold()
        self.spikes = self.spikes + 1 if self.is_spike else 0
        if self.config.spike_rollback and self.spikes >= self.config.max_skips:
            return Verdict.ROLL_BACK
        self.history.append(loss)  # a spike too: the median bears it, and a lasting rise becomes the new normal
        return Verdict.TAKE

    def threshold(self) -> float:
        """The loss above which a step is a spike."""
        median = statistics.median(self.history)
        deviation = statistics.median(abs(loss - median) for loss in self.history)
        return median + self.config.spike_factor * max(1.4826 * deviation, 0.01 * abs(median))

    def reset(self) -> None:
        """After a rollback: no bad steps in a row."""
        self.skips = self.spikes = 0
        self.is_spike = False

    def state_dict(self) -> dict[str, Any]:
        return {"skips": self.skips, "spikes": self.spikes, "history": list(self.history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skips, self.spikes = state["skips"], state["spikes"]
        self.history = deque(state["history"], maxlen=self.config.spike_window)
