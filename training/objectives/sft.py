"""Supervised fine-tuning: conversations in packed rows, with loss on what the assistant writes and on nothing else.

Each conversation is one segment of a row, as `mify.post.chat.render` makes it; none is cut by packing. An epoch is a
plan: the conversations of its stage in an order keyed by (seed, epoch), packed best-fit, bins in a keyed order. So a
batch is a pure function of (conversations, seed, step), and the state is a place in it. Rows run on across epochs.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mify.data.batch import PackedBatch
from mify.data.segments import PackedEpochs, Segment, pack_segments
from mify.errors import MifyError
from mify.tokenizer import Tokenizer
from mify.training.config import ConversationsSection

from .conversations import ConversationSet, Source

FORMAT, VERSION = "conversation-stream", 2


class ConversationStream:
    """Batches of packed conversations, resumable at any step, the same on any number of ranks.

    Args:
        sources: where they come from.
        context: tokens per row. rows_per_step: of the global batch. seed: keys every order, and the stages.
        rules: what becomes of conversations that are too long or bad, and the stages.
        rank, world_size: this process makes rows [rank, rank + 1) * rows_per_step / world_size of each batch.
        skip: identities of conversations that keep their place and carry no loss.
        cache: a folder for the conversations' ids, so that a run that goes on need not make them again.

    Raises:
        MifyError: nothing there, a line that is no conversation (named by file and line), a tokenizer without ChatML's
            tokens, conversations that are all longer than the context.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        *,
        context: int,
        rows_per_step: int,
        seed: int,
        rules: ConversationsSection | None = None,
        rank: int = 0,
        world_size: int = 1,
        skip: Collection[str] = (),
        cache: Path | None = None,
    ) -> None:
        if rows_per_step % world_size:
            raise MifyError(f"rows_per_step = {rows_per_step} does not divide over {world_size} ranks", "change one")
        self.context, self.rows_per_step, self.seed = context, rows_per_step, seed
        self.rank, self.world_size = rank, world_size
        self.rules = rules if rules is not None else ConversationsSection()
        self.conversations = ConversationSet(
            sources, tokenizer, self.rules, context=context, skip=skip, cache=cache, write_cache=rank == 0
        )
        self.tokens = [0] * len(sources)
        self.supervised = [0] * len(sources)
        self._pad = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eot_id or 0
        self._max_pieces = max(16, context // 32)
        self._chosen: dict[int, list[int]] = {}
        self.stage_conversations(0)
        self._epochs = PackedEpochs(
            self._entries, np.diff(self.conversations.offsets).tolist(), context=context, max_items=self._max_pieces,
            seed=seed, key=int(self.conversations.fingerprint[:16], 16),
        )  # fmt: skip

    @property
    def num_stages(self) -> int:
        return max(1, len(self.rules.stages))

    def stage_of(self, epoch: int) -> int:
        """Which stage an epoch belongs to; the last goes on without end."""
        return min(epoch // self.rules.stage_epochs, self.num_stages - 1)

    def stage_conversations(self, stage: int) -> list[int]:
        """The numbers of a stage's conversations."""
        if stage not in self._chosen:
            size = self.rules.stages[stage] if self.rules.stages else None
            self._chosen = {stage: self.conversations.chosen(self.seed, size)}
        return self._chosen[stage]

    def rows_in_epoch(self, epoch: int) -> int:
        """How many rows an epoch has."""
        other = copy.copy(self._epochs)
        other.load_state_dict({"epoch": epoch, "bin": 0})
        return len(other.plan())

    def notes(self) -> list[str]:
        """What a person should know before the run starts: what was left out, and what each stage is made of."""
        known = self.conversations
        lines = [c.describe(s.name) for s, c in zip(known.sources, known.counts, strict=True)]
        lengths = np.diff(known.offsets)
        for stage in range(self.num_stages):
            numbers = np.array(known.chosen(self.seed, self.rules.stages[stage] if self.rules.stages else None))
            each = np.bincount(known.source[numbers], minlength=len(known.sources))
            weights = np.array([source.weight for source in known.sources])[known.source[numbers]]
            steps = float((lengths[numbers] * weights).sum()) / (self.context * self.rows_per_step)
            mixed = ", ".join(f"{count:,} {source.name}" for source, count in zip(known.sources, each, strict=True))
            lines.append(f"stage {stage + 1} of {self.num_stages}: {mixed}; about {steps:,.1f} steps an epoch")
        return lines

    def __iter__(self) -> Iterator[PackedBatch]:
        share = self.rows_per_step // self.world_size
        while True:
            rows = [self._next_row() for _ in range(self.rows_per_step)]
            mine = rows[self.rank * share : (self.rank + 1) * share]
            yield pack_segments(
                [[self._segment(number) for number in row] for row in mine], context=self.context, pad_id=self._pad,
                max_segments=self._max_pieces,
            )  # fmt: skip

    def _entries(self, epoch: int) -> list[int]:
        """The conversations of an epoch's stage, repeated by weight."""
        known = self.conversations
        weights = [int(source.weight) for source in known.sources]
        chosen = self.stage_conversations(self.stage_of(epoch))
        return [number for number in chosen for _ in range(weights[known.source[number]])]

    def _next_row(self) -> list[int]:
        row, known = self._epochs.next_row(), self.conversations
        for number in row:
            low, high = known.offsets[number], known.offsets[number + 1]
            self.tokens[known.source[number]] += int(high - low)
            self.supervised[known.source[number]] += int(known.loss[low:high].sum())
        return row

    def _segment(self, number: int) -> Segment:
        known = self.conversations
        part = slice(int(known.offsets[number]), int(known.offsets[number + 1]))
        return Segment(known.ids[part], known.loss[part])

    def state_dict(self) -> dict[str, Any]:
        """The state after the last batch given out."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "identity": self._identity(),
            **self._epochs.state_dict(),
            "tokens": list(self.tokens),
            "supervised": list(self.supervised),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the batch at which the state was taken.

        Raises:
            MifyError: the state is of other conversations, another seed, context, batch or other stages.
        """
        if (state.get("format"), state.get("version"), state.get("identity")) != (FORMAT, VERSION, self._identity()):
            raise MifyError(
                "the checkpoint's conversations are others than these", "give the same data, or start a new run"
            )
        self._epochs.load_state_dict(state)
        self.tokens, self.supervised = list(state["tokens"]), list(state["supervised"])

    def documents_after(self, state: dict[str, Any]) -> list[list[str]]:
        """For each row of the global batch that follows `state` its conversations: 64 bits of their SHA-256."""
        other = copy.copy(self)
        other._epochs = copy.copy(self._epochs)
        other.load_state_dict(state)
        rows = [other._next_row() for _ in range(self.rows_per_step)]
        return [[self.conversations.identity(number) for number in row] for row in rows]

    def ledger(self) -> dict[str, Any]:
        """By source: tokens trained, those with loss, epochs, the stage, and what was left out and why."""
        stage = {"stage": self.stage_of(self._epochs.epoch) + 1} if self.rules.stages else {}
        known = self.conversations
        return {
            source.name: {
                "tokens": self.tokens[number], "supervised": self.supervised[number], "epochs": self._epochs.epochs,
                **stage, **known.counts[number].to_dict(),
            }
            for number, source in enumerate(known.sources)
        }  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        return {
            "content": self.conversations.fingerprint,
            "seed": self.seed,
            "context": self.context,
            "rows_per_step": self.rows_per_step,
            "parts": [source.parts for source in self.conversations.sources],
            "stages": [*self.rules.stages, self.rules.stage_epochs],
        }
