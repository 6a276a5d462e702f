"""Which tokens of which requests go into the next forward pass.

Requests are served in the order they came. A pass carries first the next token of every request that has its prompt
behind it, then, up to a budget of tokens, pieces of prompts: of requests that were begun, then of those that wait. A
request is admitted when a place and pages for all its tokens are free, and beside them one page for every running
request, which may need one soon. Nobody is let past the first that waits.

Where a running request needs a page and none is free, the youngest running one gives all of its pages back and waits
again, before all others; what it had is computed anew. So the oldest always goes on, and nobody is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .cache import PagedCache
from .lookup import Lookup
from .pages import Pages
from .request import Event, Result, SamplingParams
from .text import StopStrings


@dataclass(slots=True, eq=False)
class Generation:
    """A request in the engine.

    Args:
        tokens: the prompt and what was made of it. prompt: tokens of the prompt. limit: of tokens in all.
        draws: of the new tokens' positions, in [0, 1); None where nothing is drawn.
        cached: tokens whose keys and values lie in the cache. row: in the page table; -1 while it waits.
        result, events: what came of it, and of that what its stream has not handed on. abandoned: nobody has that.
    """

    result: Result
    tokens: list[int]
    prompt: int
    limit: int
    params: SamplingParams
    stop_ids: frozenset[int]
    stop: StopStrings | None
    draws: NDArray[np.float64] | None
    lookup: Lookup | None
    cached: int = 0
    row: int = -1
    pages: list[int] = field(default_factory=list)
    events: deque[Event] = field(default_factory=deque)
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` tokens of a generation from `start` on, and guesses behind them."""

    of: Generation
    start: int
    count: int
    guesses: Sequence[int] = ()

    @property
    def size(self) -> int:
        return self.count + len(self.guesses)

    @property
    def decides(self) -> bool:
        """Whether it ends with the newest token, so that the next one follows from it."""
        return self.start + self.count == len(self.of.tokens)


class Scheduler:
    """Args:
    pages, cache: see there. max_sequences: running at a time. step_tokens: in a pass, guesses included.
    guesses: tokens that are guessed at most for a request.
    """

    def __init__(
        self, pages: Pages, cache: PagedCache, *, max_sequences: int, step_tokens: int, guesses: int = 0
    ) -> None:
        self._pages, self._cache = pages, cache
        self._step_tokens, self._guesses = step_tokens, guesses
        self._rows = list(range(max_sequences - 1, -1, -1))
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []  # the oldest first
        self.preemptions = 0

    def add(self, generation: Generation) -> None:
        self.waiting.append(generation)

    def remove(self, generation: Generation) -> None:
        """Takes out who has ended, wherever it stands."""
        if generation.row < 0:
            self.waiting.remove(generation)
        else:
            self.running.remove(generation)
            self._release(generation)

    def schedule(self) -> list[Piece]:
        """The pieces of the next pass; none where there is nothing to do."""
        pieces = self._decoding()
        left = self._step_tokens - sum(piece.size for piece in pieces)
        for generation in self.running:
            if left > 0 and len(generation.tokens) - generation.cached > 1:
                pieces.append(self._prompt_piece(generation, left))
                left -= pieces[-1].size
        while left > 0 and self.waiting and self._admit(self.waiting[0]):
            generation = self.waiting.popleft()
            self.running.append(generation)
            pieces.append(self._prompt_piece(generation, left))
            left -= pieces[-1].size
        return pieces

    def restart(self) -> None:
        """Takes all pages back: whoever runs is computed anew."""
        while self.running:
            self._preempt()

    def _decoding(self) -> list[Piece]:
        ready = [one for one in self.running if len(one.tokens) - one.cached == 1]
        pieces: list[Piece] = []
        budget = self._step_tokens - len(ready)
        for one in ready:
            if one.row < 0:
                continue  # preempted for an older one
            if not self._grow(one, one.cached + 1):
                continue
            guesses = self._guess(one, budget) if one.lookup is not None and budget > 0 else ()
            budget -= len(guesses)
            pieces.append(Piece(one, one.cached, 1, guesses))
        return [piece for piece in pieces if piece.of.row >= 0]

    def _guess(self, one: Generation, budget: int) -> Sequence[int]:
        assert one.lookup is not None
        most = min(self._guesses, budget, one.limit - len(one.tokens) - 1)
        guesses = one.lookup.guess(one.tokens, most) if most > 0 else []
        while guesses and self._pages.needed(len(one.tokens) + len(guesses)) - len(one.pages) > self._pages.free:
            guesses.pop()  # nobody gives way for a guess
        if guesses:
            self._grow(one, len(one.tokens) + len(guesses))
        return guesses

    def _grow(self, one: Generation, tokens: int) -> bool:
        """Gets `one` pages for so many tokens; False where it had to give way itself."""
        while (missing := self._pages.needed(tokens) - len(one.pages)) > 0:
            if self._pages.free < missing:
                if self._preempt() is one:
                    return False
                continue
            self._take(one, missing)
        return True

    def _preempt(self) -> Generation:
        """Sends the youngest back to wait, before all others."""
        youngest = self.running.pop()
        self._release(youngest)
        self.waiting.appendleft(youngest)
        self.preemptions += 1
        return youngest

    def _take(self, one: Generation, count: int) -> None:
        new = [self._pages.take() for _ in range(count)]
        self._cache.assign(one.row, len(one.pages), new)
        one.pages += new

    def _release(self, one: Generation) -> None:
        self._pages.give_back(one.pages)
        self._rows.append(one.row)
        one.pages, one.row, one.cached = [], -1, 0

    def _admit(self, one: Generation) -> bool:
        """Gives `one` a row and pages for all its tokens, if they are there."""
        if not self._rows:
            return False
        # The last token is always computed, so that there is something to go on from.
        shared = self._pages.shared(one.tokens[:-1])
        missing = self._pages.needed(len(one.tokens)) - len(shared)
        spare = len(self.running)
        if self._pages.free < missing + spare:
            return False
        one.row = self._rows.pop()
        self._pages.hold(shared)
        self._cache.assign(one.row, 0, shared)
        one.pages, one.cached = shared, len(shared) * self._pages.page_size
        self._take(one, missing)
        return True

    def _prompt_piece(self, one: Generation, budget: int) -> Piece:
        piece = Piece(one, one.cached, min(budget, len(one.tokens) - one.cached))
        # Keys and values are stored before anything attends to them, so another request may share these pages already
        # in this pass.
        self._pages.publish(one.pages, piece.start // self._pages.page_size, one.tokens[: piece.start + piece.count])
        return piece
