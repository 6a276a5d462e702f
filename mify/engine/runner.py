"""Forward passes of the engine: the tokens of all its requests in, logits where a next token is decided out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mify.kernels import launch

from .cache import PagedCache, Pass
from .scheduler import Piece

if TYPE_CHECKING:
    from mify.model import Model

Ints = NDArray[np.int64]
SMALL = 16
"""Pieces of at most so many tokens (guesses, the ends of prompts) are computed as single tokens."""


class Runner:
    """Runs passes over one cache.

    Args:
        max_rows: tokens of a pass of single tokens at most.
        graph: whether such a pass is padded to one of `bucket_sizes`, captured in a CUDA graph, and replayed: its
            hundreds of launches become one, which is what a small batch waits for.
    """

    def __init__(self, model: Model, cache: PagedCache, *, max_rows: int, graph: bool) -> None:
        self._model, self._cache = model, cache
        self._device = model.head_weight.device
        self._buckets = bucket_sizes(max_rows) if graph else []
        self._steps: dict[int, RowStep] = {}

    def __call__(self, pieces: Sequence[Piece]) -> tuple[list[Piece], Tensor]:
        """The pieces that decide a token, and the logits (N, V) behind each one's last token and each of its guesses.

        Args:
            pieces: of different generations.
        """
        self._cache.flush()
        single = [piece for piece in pieces if piece.size <= SMALL]
        chunks = [piece for piece in pieces if piece.size > SMALL and piece.start > 0]
        fresh = [piece for piece in pieces if piece.size > SMALL and piece.start == 0]
        ordered = [*single, *chunks, *fresh]
        tokens, positions, rows = _flat(ordered)
        wanted = _wanted(ordered)
        if chunks or fresh:
            logits = self._mixed(ordered, len(single), len(chunks), tokens, positions, rows, wanted)
        else:
            logits = self._single(tokens, positions, rows)
            if len(wanted) < logits.shape[0]:
                logits = logits[torch.from_numpy(wanted).to(self._device)]
        return [piece for piece in ordered if piece.decides], logits

    def _single(self, tokens: Ints, positions: Ints, rows: Ints) -> Tensor:
        size = next((bucket for bucket in self._buckets if bucket >= len(tokens)), len(tokens))
        step = self._steps.get(size)
        if step is None:
            graph = bool(self._buckets) and size <= self._buckets[-1]
            step = RowStep(self._model, self._cache, size, graph=graph)
            if graph:
                self._steps[size] = step
        return step(tokens, positions, rows)

    def _mixed(
        self, pieces: list[Piece], singles: int, chunks: int, tokens: Ints, positions: Ints, rows: Ints, wanted: Ints
    ) -> Tensor:
        cache, device = self._cache, self._device
        on_device = [torch.from_numpy(x).to(device) for x in (tokens, positions, rows, wanted)]
        alone = sum(piece.size for piece in pieces[:singles])
        at_rows, at_positions = on_device[2], on_device[1]
        now = Pass(
            slots=cache.slots(at_rows, at_positions),
            rows=alone,
            row_lengths=(at_positions[:alone] + 1).to(torch.int32),
            row_table=cache.table[at_rows[:alone]],
        )
        behind, fresh = pieces[singles : singles + chunks], pieces[singles + chunks :]
        if behind:
            now.chunks, now.chunk_longest = sum(p.size for p in behind), max(p.size for p in behind)
            now.chunk_bounds = self._bounds(behind)
            now.chunk_lengths = torch.tensor([p.start + p.size for p in behind], dtype=torch.int32).to(device)
            now.chunk_table = cache.table[torch.tensor([p.of.row for p in behind]).to(device)]
        if fresh:
            now.fresh_bounds, now.fresh_longest = self._bounds(fresh), max(p.size for p in fresh)
        cache.now = now
        hidden = self._model(on_device[0], at_positions, self._bounds(pieces), len(tokens), cache)
        cache.now = None
        return self._model.logits(hidden[on_device[3]])

    def _bounds(self, pieces: Sequence[Piece]) -> Tensor:
        with torch.inference_mode(False):  # so that its values are read once and not by every layer
            bounds = torch.tensor([0, *accumulate(piece.size for piece in pieces)], dtype=torch.int32)
            return bounds.to(self._device)


class RowStep:
    """A pass of `size` single tokens on tensors that never move: what a CUDA graph can hold.

    Args:
        graph: capture it, and replay that. Fewer tokens than `size` may be given then; the rest is padding, which
            writes to the page that belongs to nobody. Otherwise exactly `size` are given.
    """

    def __init__(self, model: Model, cache: PagedCache, size: int, *, graph: bool) -> None:
        self._model, self._cache, self._size, self._graph = model, cache, size, graph
        device = model.head_weight.device
        self._inputs = torch.zeros((3, size), dtype=torch.int64, device=device)  # tokens, positions, rows of the table
        self._inputs[2] = cache.idle_row
        self._bounds = torch.arange(size + 1, dtype=torch.int32, device=device)
        self._step = self._run
        if graph:
            with launch.on(self._inputs):
                self._step = captured(self._run)

    def __call__(self, tokens: Ints, positions: Ints, rows: Ints) -> Tensor:
        """The logits (T, V) of T ≤ size tokens; the next call may overwrite them."""
        count = len(tokens)
        given = torch.from_numpy(np.stack([tokens, positions, rows]))
        if not self._graph:
            self._inputs = given.to(self._inputs.device)
        else:
            self._inputs[:, :count].copy_(given)
            self._inputs[:2, count:] = 0
            self._inputs[2, count:] = self._cache.idle_row
        return self._step()[:count]

    def _run(self) -> Tensor:
        tokens, positions, rows = self._inputs.unbind(0)
        cache = self._cache
        cache.now = Pass(
            slots=cache.slots(rows, positions),
            rows=self._size,
            row_lengths=(positions + 1).to(torch.int32),
            row_table=cache.table[rows],
        )
        hidden = self._model(tokens, positions, self._bounds, 1, cache)
        cache.now = None
        return self._model.logits(hidden)


def captured(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`run`, which reads and writes tensors that stay where they are, as a CUDA graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # kernels are compiled and memory is found at the first call
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def bucket_sizes(most: int) -> list[int]:
    """Sizes that passes are padded to: every power of two up to 8, then every 8 up to 64, 16 up to 256, 32 beyond."""
    sizes = [1, 2, 4]
    while sizes[-1] < most:
        last = sizes[-1]
        sizes.append(last + (4 if last < 8 else 8 if last < 64 else 16 if last < 256 else 32))
    return [size for size in sizes if size < most] + [most]


def _flat(pieces: Sequence[Piece]) -> tuple[Ints, Ints, Ints]:
    """(T,) each: the tokens of all pieces, their positions, and the rows of the page table they belong to."""
    if all(piece.size == 1 for piece in pieces):
        return (
            np.array([piece.of.tokens[piece.start] for piece in pieces]),
            np.array([piece.start for piece in pieces]),
            np.array([piece.of.row for piece in pieces]),
        )
    tokens: list[int] = []
    for piece in pieces:
        tokens += piece.of.tokens[piece.start : piece.start + piece.count]
        tokens += piece.guesses
    sizes = np.array([piece.size for piece in pieces])
    before = np.cumsum(sizes) - sizes
    starts = np.array([piece.start for piece in pieces])
    positions = np.arange(len(tokens)) + np.repeat(starts - before, sizes)
    return np.array(tokens), positions, np.repeat([piece.of.row for piece in pieces], sizes)


def _wanted(pieces: Sequence[Piece]) -> Ints:
    """Which of those tokens decide a next one."""
    wanted: list[int] = []
    end = 0
    for piece in pieces:
        end += piece.size
        if piece.decides:
            wanted += range(end - 1 - len(piece.guesses), end)
    return np.array(wanted, np.int64)
