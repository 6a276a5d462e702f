"""Guesses of what comes next, looked up in what a request has said: code repeats itself.

The last three tokens are looked for in the request's own tokens; what followed them there last is the guess (Saxena
2023, "prompt lookup decoding"; Yang et al. 2023, arXiv 2304.04487). The model then computes all guessed positions in
one pass, and each is kept only where it is the very token that would have been chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 3


class Lookup:
    """Where each run of three tokens occurred last, of one request."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._known = GRAM

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that may follow `tokens`, a list that only grows from call to call."""
        for end in range(self._known, len(tokens)):
            self._after[tuple(tokens[end - GRAM : end])] = end
        self._known = max(self._known, len(tokens))
        at = self._after.get(tuple(tokens[-GRAM:]))
        return list(tokens[at : at + count]) if at is not None else []
