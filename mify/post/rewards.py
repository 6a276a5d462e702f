"""What an answer earns: named parts, weighted and added.

    tests    the share of its tests that its program passes, 0 to 1; 0 where a guard struck (`mify.post.verifiable`)
    solved   1 where all pass
    format   1 where the answer ended by itself and is a program that defines what was asked for
    length   0 up to a budget of tokens, then falling to −1 at the longest answer allowed (DAPO, arXiv 2503.14476, 3.4)

"package.module:function" names a reward of your own: a function of an `Answered` that returns a number. What it raises
is counted under its name; the answer is then left out of its group's baseline and of training.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mify.errors import MifyError
from mify.post.verifiable import CodeTask, Judged


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and what came of it.

    Args:
        text: the answer. tokens: how many it has. finished: it ended by itself.
        length_budget, max_tokens: tokens that cost nothing, and the most that were allowed.
    """

    task: CodeTask
    text: str
    tokens: int
    finished: bool
    judged: Judged
    length_budget: int
    max_tokens: int


Reward = Callable[[Answered], float]


def _length(answered: Answered) -> float:
    over = answered.tokens - answered.length_budget
    return -max(0, over) / max(1, answered.max_tokens - answered.length_budget)


REWARDS: dict[str, Reward] = {
    "tests": lambda answered: answered.judged.fraction,
    "solved": lambda answered: float(answered.judged.solved),
    "format": lambda answered: float(answered.finished and answered.judged.status != "no program"),
    "length": _length,
}


def reward_functions(weights: Mapping[str, float]) -> dict[str, Reward]:
    """The functions by name.

    Raises:
        MifyError: a name that is neither known nor "package.module:function".
    """
    found: dict[str, Reward] = {}
    for name in weights:
        if name in REWARDS:
            found[name] = REWARDS[name]
            continue
        module, colon, function = name.partition(":")
        try:
            if not colon:
                raise ImportError
            found[name] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            known = ", ".join(REWARDS)
            raise MifyError(
                f"there is no reward {name!r}" + (f": {error}" if colon else ""),
                f"use {known}, or package.module:function of your own, its folder in PYTHONPATH",
            ) from None
    return found


@dataclass(frozen=True)
class Scores:
    """Rewards of many answers.

    Args:
        rewards: weighted sums, NaN where a part could not be computed.
        parts: by name, NaN likewise.
        errors: "name: ExceptionType" → how often.
    """

    rewards: list[float]
    parts: dict[str, list[float]]
    errors: Counter[str]


def score(
    answers: Sequence[Answered], functions: Mapping[str, Reward], weights: Mapping[str, float], *, stop: bool
) -> Scores:
    """Every part of every answer, and their weighted sums.

    Args:
        stop: raise where a part cannot be computed, instead of counting it.

    Raises:
        MifyError: with `stop`, naming the reward, the task and the exception.
    """
    parts: dict[str, list[float]] = {name: [] for name in functions}
    errors: Counter[str] = Counter()
    for answered in answers:
        for name, function in functions.items():
            try:
                value = float(function(answered))
                if not math.isfinite(value):
                    raise ValueError(f"{value} is no reward")
            except Exception as error:  # a user's function may raise anything; it is counted and named
                if stop:
                    raise MifyError(
                        f"the reward {name} raised {type(error).__name__} on an answer to {answered.task.id}: {error}",
                        "mend it, or set --grpo.on_error='go on' to count such answers and leave them out",
                    ) from error
                errors[f"{name}: {type(error).__name__}"] += 1
                value = math.nan
            parts[name].append(value)
    rewards = [sum(weights[name] * values[index] for name, values in parts.items()) for index in range(len(answers))]
    return Scores(rewards, parts, errors)
