"""What requests cost, and the ceiling that they may not cross.

Before a request goes out, the most that it can cost is set aside: every byte of the prompt a token (a byte-level
vocabulary makes at most that many of it), the longest answer allowed. So the ceiling holds for any number of requests
at a time. Requests that were on their way when an earlier run was killed count with that worst, since they may have
been billed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from mify.errors import MifyError
from mify.post.synth.ledger import Ledger

CHARACTERS_A_TOKEN = 4
"""For estimates where an endpoint does not say how many tokens it counted."""
_TEMPLATE_TOKENS = 64  # what a chat template adds, at most


@dataclass(frozen=True, slots=True)
class Price:
    """What an endpoint takes for a million tokens, in any one currency.

    Args:
        input: of prompts. output: of answers.
    """

    input: float = 0.0
    output: float = 0.0

    def of(self, prompt_tokens: float, new_tokens: float) -> float:
        """The cost of one request."""
        return (prompt_tokens * self.input + new_tokens * self.output) / 1e6

    def worst(self, prompt_bytes: int, max_new_tokens: int, messages: int) -> float:
        """The most that a request can cost."""
        return self.of(prompt_bytes + _TEMPLATE_TOKENS * messages, max_new_tokens)


@dataclass(frozen=True, slots=True)
class Budget:
    """Where a run stops; None is no limit.

    Args:
        max_cost: in the prices' currency. max_requests: of all runs in a folder together.
    """

    max_cost: float | None = None
    max_requests: int | None = None


class BudgetReachedError(MifyError):
    """The ceiling is reached; all that was answered is kept."""


class Account:
    """Sums of one folder: earlier runs, this one, and what is set aside for requests on their way."""

    def __init__(self, budget: Budget, prices: Mapping[str, Price], ledger: Ledger) -> None:
        self._budget, self._prices = budget, prices
        self._condition = threading.Condition()
        self._aside = 0.0
        self._on_their_way = 0
        self.possibly_billed = sum(worst for _, worst in ledger.interrupted.values())
        self.spent: float = sum(ledger.spent.values())
        self.requests = ledger.totals["sent"]

    def set_aside(self, endpoint: str, prompt_bytes: int, max_new_tokens: int, messages: int) -> float:
        """Sets the worst cost of a request aside and returns it; waits where requests on their way may leave enough.

        Raises:
            BudgetReachedError: the request would cross a limit.
        """
        worst = self._prices[endpoint].worst(prompt_bytes, max_new_tokens, messages)
        limit, most = self._budget.max_cost, self._budget.max_requests
        with self._condition:
            while True:
                if most is not None and self.requests >= most:
                    raise BudgetReachedError(
                        f"the ceiling of {most:,} requests is reached",
                        "raise budget.max_requests and run again: what was answered is not asked again",
                    )
                total = self.spent + self.possibly_billed + self._aside + worst
                if limit is None or total <= limit:
                    break
                if self._on_their_way == 0:
                    raise BudgetReachedError(
                        f"the ceiling of {limit:g} is reached: {self.spent:.4g} spent"
                        + (f", {self.possibly_billed:.4g} possibly billed" if self.possibly_billed else "")
                        + f", and the next request may cost {worst:.4g}",
                        "raise budget.max_cost and run again: what was answered is not asked again",
                    )
                self._condition.wait()
            self._aside += worst
            self._on_their_way += 1
            self.requests += 1
        return worst

    def settle(self, worst: float, cost: float) -> None:
        """A request has ended and cost this much."""
        with self._condition:
            self._aside -= worst
            self._on_their_way -= 1
            self.spent += cost
            if self._on_their_way == 0:
                self._aside = 0.0  # no rest of rounding stays
            self._condition.notify_all()
