"""The deterministic stream of batches: sources mixed by trained tokens, resumable at any step, the same on any ranks.

A batch is a pure function of (sources, seed, step). Documents are shuffled per epoch by a keyed permutation and taken
window by window; a window is planned (cuts, lengths, bins), its bins are shuffled, and each bin becomes a row. Rows are
dealt out to sources by largest deficit of tokens, in integers. Every rank plans everything and makes only its own rows.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mify._core import packing
from mify.data.batch import PackedBatch
from mify.data.fim import FimConfig
from mify.data.philox import Purpose
from mify.data.plan import PlanConfig, PlanCounts, WindowPlan, check_nodes, plan_window
from mify.data.rows import Loss, PackedRows, concatenate, make_rows, padding_rows
from mify.data.shards import TokenShards
from mify.data.sources import Exhausted, Source, check_sources
from mify.data.spans import PackedSpans, concatenate_spans, make_spans, padding_spans
from mify.errors import MifyError
from mify.tokenizer import Tokenizer

__all__ = ["FimConfig", "Source", "TokenStream"]

log = logging.getLogger("mify.data")

STATE_FORMAT = "token-stream"
STATE_VERSION = 1


@dataclass(slots=True)
class _Cursor:
    """Where a source stands, and what was taken from it: all that a checkpoint needs of it."""

    epoch: int = 0
    window: int = 0
    bin: int = 0
    tokens: int = 0
    rows: int = 0
    padding: int = 0
    done: bool = False


@dataclass(slots=True)
class _Feed:
    """A source at run time: its shards, its cursor, the plan of the window it stands in."""

    source: Source
    shards: TokenShards
    cursor: _Cursor = field(default_factory=_Cursor)
    plan: WindowPlan | None = None
    bin_tokens: list[int] = field(default_factory=list)
    planned: tuple[int, int] = (-1, -1)
    base: int = 0
    """Number of its first token among those of all sources."""


_Row = tuple[_Feed, WindowPlan, int]
"""A source, the plan of its window, a bin."""


class TokenStream(IterableDataset[PackedBatch]):
    """Batches for a trainer of one's own: iterate it, or give it to a `DataLoader(stream, batch_size=None)`.

    Args:
        sources: shards folders with weights; the weights need not sum to one.
        context: tokens per row.
        rows_per_step: rows of the *global* batch.
        seed: 64 bits; keys every order and every FIM decision.
        fim: None or rate 0.0 for plain order.
        loss: `all` or `middle`, see `mify.data.rows`.
        rank, world_size: this process takes rows [rank, rank + 1) * rows_per_step / world_size of each global batch.
        exhausted: what happens when a source has been seen once: `repeat` it with new cuts in a new order, `stop` the
            stream, or `reweight` (go on with the others until all are used up).
        skip: ids (hexadecimal, or their first 64 bits as int) of documents to blank.
        window_documents: documents planned and shuffled into bins together.
        tokenizer: default: the one that lies with the first source.
        device: where batches are made. On a GPU, rows travel there at 2 bytes a token and are widened there.
        resident: hold the sources' tokens in the device's memory (2 bytes a token of the corpus), so that batches are
            gathered there and only their plan travels.

    Raises: MifyError: before the first batch, for whatever is wrong with the sources or the sizes.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        context: int,
        rows_per_step: int,
        seed: int,
        fim: FimConfig | None = None,
        loss: Loss = "all",
        rank: int = 0,
        world_size: int = 1,
        exhausted: Exhausted = "repeat",
        skip: Collection[str | int] = (),
        window_documents: int = 65_536,
        max_segments: int | None = None,
        tokenizer: Tokenizer | None = None,
        verify: bool | None = None,
        threads: int = 1,
        device: torch.device | str = "cpu",
        resident: bool = False,
    ) -> None:
        super().__init__()
        check_sources(sources, rows_per_step, rank, world_size, exhausted, loss)
        if window_documents < 1:
            raise MifyError(f"window_documents is {window_documents}", "give a positive number")
        if tokenizer is None:
            tokenizer = Tokenizer.load(sources[0].path)
        self.tokenizer = tokenizer
        self.config = PlanConfig(context, seed, fim, max_segments)
        self.rows_per_step, self.rank, self.world_size = rows_per_step, rank, world_size
        self.loss: Loss = loss
        self.exhausted: Exhausted = exhausted
        self.skip = frozenset(int(i[:16], 16) if isinstance(i, str) else i for i in skip)
        self.window_documents = window_documents
        self.threads = threads
        self.device = torch.device(device)
        self.step = 0
        self.counts = PlanCounts()
        self._feeds = [_Feed(source, TokenShards(source.path, tokenizer, verify)) for source in sources]
        for feed in self._feeds:
            check_nodes(feed.shards, fim)
            if not feed.shards.num_documents:
                raise MifyError(f"source {feed.source.name!r} has no documents", "leave it out, or tokenize some")
        shares = [Fraction(source.weight) for source in sources]
        scale = max(share.denominator for share in shares)
        self._weights = [int(share * scale) for share in shares]
        eot, pad = tokenizer.eot_id, tokenizer.pad_id
        if eot is None:
            raise MifyError("the tokenizer has no end-of-text token", "use one that has <|endoftext|>")
        self._pad_id = eot if pad is None else pad
        sentinels = (tokenizer.fim_prefix_id, tokenizer.fim_middle_id, tokenizer.fim_suffix_id)
        if fim is not None and fim.rate > 0 and None in sentinels:
            raise MifyError(
                "this vocabulary has no FIM tokens", "set the FIM rate to 0, or use a tokenizer that has them"
            )
        self._sentinels = [i for i in sentinels if i is not None]
        self._resident: torch.Tensor | None = None
        if resident:
            parts = [np.asarray(tokens) for feed in self._feeds for tokens in feed.shards.tokens]
            self._resident = torch.from_numpy(np.concatenate(parts)).to(self.device)
            bases = np.cumsum([0, *(feed.shards.num_tokens for feed in self._feeds)])
            for feed, base in zip(self._feeds, bases.tolist(), strict=False):
                feed.base = base

    @property
    def context(self) -> int:
        return self.config.context

    @property
    def cu_seqlens_length(self) -> int:
        """M: the constant length of a batch's `cu_seqlens`."""
        return self.rows_per_step // self.world_size * (self.config.segments + 1) + 1

    def __iter__(self) -> Iterator[PackedBatch]:
        worker = get_worker_info()
        stride, offset = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        turn = 0
        while True:
            rows = self._schedule()
            if not rows:
                return
            mine = turn % stride == offset
            turn += 1
            self.step += 1
            if mine:
                yield self._batch(rows)

    def seek(self, step: int) -> None:
        """Goes to a step from the beginning or from where the stream stands, by planning without making rows."""
        if step < self.step:
            for feed in self._feeds:
                feed.cursor = _Cursor()
            self.step = 0
        while self.step < step and self._schedule():
            self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """The state after the last batch given out: a few integers per source, whatever the corpus' size."""
        return {
            "format": STATE_FORMAT,
            "version": STATE_VERSION,
            "identity": self._identity(),
            "step": self.step,
            "skip": sorted(self.skip),
            "sources": {feed.source.name: asdict(feed.cursor) for feed in self._feeds},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues exactly after the batch at which the state was taken; rank and world size may differ.

        Raises: MifyError: the state is of other sources, another seed, context, FIM choice or batch size.
        """
        if state.get("format") != STATE_FORMAT or state.get("version") != STATE_VERSION:
            raise MifyError(
                f"the stream's state is {state.get('format')!r} version {state.get('version')!r}; "
                f"this mify reads {STATE_FORMAT!r} version {STATE_VERSION}",
                "resume with the mify that wrote the checkpoint",
            )
        here = self._identity()
        for key, value in state["identity"].items():
            if here.get(key) != value:
                raise MifyError(
                    f"the checkpoint's stream had {key} = {value}, this one has {here.get(key)}",
                    "give the same data configuration, or start a new run",
                )
        self.step = state["step"]
        self.skip = self.skip | frozenset(state["skip"])
        for feed in self._feeds:
            feed.cursor = _Cursor(**state["sources"][feed.source.name])

    def documents_after(self, state: Mapping[str, Any]) -> list[list[str]]:
        """The documents of the global batch that follows `state`: for each row the first 64 bits of their ids, in
        hexadecimal, as `skip` takes them. The stream itself does not move.

        Raises: MifyError: as `load_state_dict`.
        """
        other = copy.copy(self)  # other cursors over the same shards
        other._feeds = [_Feed(feed.source, feed.shards) for feed in self._feeds]
        other.load_state_dict(state)
        found = []
        for feed, plan, number in other._schedule():
            pieces = plan.piece_document[plan.bin_starts[number] : plan.bin_starts[number + 1]]
            found.append([f"{int(feed.shards.document_ids[index]):016x}" for index in dict.fromkeys(pieces.tolist())])
        return found

    @property
    def num_tokens(self) -> int:
        """Tokens of all sources, each once."""
        return sum(feed.shards.num_tokens for feed in self._feeds)

    def expected_epochs(self, steps: int) -> dict[str, float]:
        """How often each source will about be seen in so many steps, so that repetition is known before it happens."""
        tokens, whole = steps * self.rows_per_step * self.context, sum(self._weights)
        return {
            feed.source.name: tokens * weight / whole / feed.shards.num_tokens
            for feed, weight in zip(self._feeds, self._weights, strict=True)
        }

    def ledger(self) -> dict[str, dict[str, float]]:
        """What was taken from each source so far, by all ranks together: tokens (padding not counted), epochs, rows,
        padding."""
        out: dict[str, dict[str, float]] = {}
        for feed in self._feeds:
            cursor = feed.cursor
            windows = self._num_windows(feed)
            part = cursor.bin / self._plan(feed).num_bins if cursor.bin else 0.0
            epochs = 1.0 if cursor.done else cursor.epoch + (cursor.window + part) / windows
            out[feed.source.name] = {
                "tokens": cursor.tokens,
                "epochs": epochs,
                "rows": cursor.rows,
                "padding": cursor.padding,
            }
        return out

    def _identity(self) -> dict[str, Any]:
        fim = self.config.fim
        return {
            "sources": {feed.source.name: feed.shards.content for feed in self._feeds},
            "weights": {feed.source.name: feed.source.weight for feed in self._feeds},
            "tokenizer": self.tokenizer.fingerprint,
            "seed": self.config.seed,
            "context": self.config.context,
            "rows_per_step": self.rows_per_step,
            "fim": None if fim is None else {**asdict(fim), "domains": list(fim.domains)},
            "max_segments": self.config.segments,
            "window_documents": self.window_documents,
            "exhausted": self.exhausted,
        }

    def _num_windows(self, feed: _Feed) -> int:
        return -(-feed.shards.num_documents // self.window_documents)

    def _plan(self, feed: _Feed) -> WindowPlan:
        """The plan of the window in which a source's cursor stands."""
        cursor = feed.cursor
        if feed.plan is None or feed.planned != (cursor.epoch, cursor.window):
            documents, windows = feed.shards.num_documents, self._num_windows(feed)
            low, high = (documents * (cursor.window + i) // windows for i in (0, 1))
            chosen = packing.permutation(
                documents, self.config.seed, cursor.epoch, feed.shards.key, 0, Purpose.DOCUMENT_ORDER, low, high
            )
            feed.plan = plan_window(
                feed.shards, self.tokenizer, chosen, self.config, cursor.epoch, cursor.window, self.threads
            )
            feed.bin_tokens = feed.plan.bin_tokens().tolist()
            feed.planned = (cursor.epoch, cursor.window)
            self.counts = self.counts + feed.plan.counts
        return feed.plan

    def _take(self, feed: _Feed) -> _Row:
        """The source's next bin; moves its cursor."""
        plan, cursor = self._plan(feed), feed.cursor
        number = cursor.bin
        tokens = feed.bin_tokens[number]
        cursor.tokens += tokens
        cursor.rows += 1
        cursor.padding += self.context - tokens
        cursor.bin += 1
        if cursor.bin == plan.num_bins:
            cursor.bin, cursor.window = 0, cursor.window + 1
            if cursor.window == self._num_windows(feed):
                cursor.window, cursor.epoch = 0, cursor.epoch + 1
                cursor.done = self.exhausted != "repeat"
                then = {"repeat": "it is repeated with new cuts", "stop": "the stream stops"}
                then |= {"reweight": "the others go on"}
                name, step = feed.source.name, self.step
                log.info("source %s: epoch %d ended at step %d; %s", name, cursor.epoch, step, then[self.exhausted])
        return feed, plan, number

    def _schedule(self) -> list[_Row]:
        """The rows of the next global batch; fewer than `rows_per_step` in the last one, none after it."""
        rows: list[_Row] = []
        while len(rows) < self.rows_per_step:
            if self.exhausted == "stop" and any(feed.cursor.done for feed in self._feeds):
                break
            active = [i for i, feed in enumerate(self._feeds) if not feed.cursor.done]
            if not active:
                break
            weight = sum(self._weights[i] for i in active)
            total = sum(self._feeds[i].cursor.tokens for i in active) + self.context
            chosen = max(active, key=lambda i: (self._weights[i] * total - weight * self._feeds[i].cursor.tokens, -i))
            rows.append(self._take(self._feeds[chosen]))
        return rows

    def _batch(self, rows: list[_Row]) -> PackedBatch:
        share = self.rows_per_step // self.world_size
        mine = rows[self.rank * share : (self.rank + 1) * share]
        names = [feed.source.name for feed, _, _ in mine] + [""] * (share - len(mine))
        groups = [list(group) for _, group in groupby(mine, key=lambda row: (id(row[0]), id(row[1])))]
        if self._resident is not None:
            return self._gather(groups, share - len(mine)).to_batch(
                self._resident,
                context=self.context,
                pad_id=self._pad_id,
                max_segments=self.config.segments + 1,
                sentinels=self._sentinels,
                sources=names,
            )
        return self._make(groups, share - len(mine)).to_batch(self.config.segments + 1, names, self.device)

    def _make(self, groups: list[list[_Row]], missing: int) -> PackedRows:
        """Rows on the host: each group is of one plan. Rows of padding stand for those that are missing."""
        parts = [
            make_rows(
                group[0][1],
                [number for _, _, number in group],
                group[0][0].shards,
                context=self.context,
                pad_id=self._pad_id,
                sentinels=self._sentinels,
                loss=self.loss,
                skip=self.skip,
                threads=self.threads,
            )
            for group in groups
        ]
        if missing:
            parts.append(padding_rows(missing, self.context, self._pad_id, self._feeds[0].shards.dtype))
        return concatenate(parts)

    def _gather(self, groups: list[list[_Row]], missing: int) -> PackedSpans:
        """The same as spans of the resident tokens."""
        parts = [
            make_spans(
                group[0][1],
                [number for _, _, number in group],
                group[0][0].shards,
                context=self.context,
                loss=self.loss,
                skip=self.skip,
                base=group[0][0].base,
            )
            for group in groups
        ]
        if missing:
            parts.append(padding_spans(missing, self.context, self._feeds[0].shards.dtype))
        return concatenate_spans(parts)
