"""Supervised fine-tuning: conversations in packed rows, with loss on what the assistant says and on nothing else.

A conversation is a line of JSON, {"messages": [{"role", "content"}, …]}, and becomes ChatML, one segment of a row:

    <|im_start|>user\\n…<|im_end|>\\n<|im_start|>assistant\\n…<|im_end|>\\n … <|endoftext|>

Loss lies on the assistant's contents and the <|im_end|> that closes each: the tokens that a model has to write by
itself. Headers and contents are tokenized apart, as a chat client does it, and special tokens in a content are text.

An epoch is a plan: conversations in an order keyed by (seed, epoch), packed best-fit, bins in a keyed order. So a batch
is a pure function of (conversations, seed, step), and the state is a place in it. Rows run on across epochs.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mify.data.batch import PackedBatch
from mify.data.packing import best_fit_decreasing
from mify.data.philox import Permutation, Purpose
from mify.data.rows import PackedRows
from mify.errors import MifyError
from mify.tokenizer import Tokenizer

FORMAT, VERSION = "conversation-stream", 1
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Token ids (uint32) and, for each, whether it carries loss as a target."""

    ids: NDArray[np.uint32]
    loss: NDArray[np.bool_]
    source: int
    identity: str  # 64 bits of the SHA-256 of its line, in hexadecimal


class ConversationStream:
    """Batches of packed conversations, resumable at any step, the same on any number of ranks.

    A source's weight is how often each of its conversations is seen in an epoch: a whole number.

    Args:
        sources: (name, a .jsonl file or a folder of them, weight).
        context: tokens per row. rows_per_step: of the global batch. seed: keys every order.
        rank, world_size: this process makes rows [rank, rank + 1) * rows_per_step / world_size of each batch.
        skip: identities of conversations that keep their place and carry no loss.

    Raises:
        MifyError: nothing there, a line that is no conversation (named by file and line), a tokenizer without ChatML's
            tokens, conversations that are all longer than the context.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, Path, float]],
        tokenizer: Tokenizer,
        *,
        context: int,
        rows_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        skip: Collection[str] = (),
    ) -> None:
        if rows_per_step % world_size:
            raise MifyError(f"rows_per_step = {rows_per_step} does not divide over {world_size} ranks", "change one")
        self.context, self.rows_per_step, self.seed = context, rows_per_step, seed
        self.rank, self.world_size = rank, world_size
        self._skip = frozenset(skip)
        self.names = [name for name, _, _ in sources]
        self.tokens = [0] * len(sources)
        self.too_long = [0] * len(sources)
        self._pad = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eot_id or 0
        self._max_pieces = max(16, context // 32)
        self._conversations: list[Conversation] = []
        self._entries: list[int] = []  # of an epoch: numbers of conversations, repeated by weight
        content = hashlib.sha256(tokenizer.fingerprint.encode())
        for number, (name, path, weight) in enumerate(sources):
            self._read(number, name, path, weight, tokenizer, content)
        if not self._conversations:
            raise MifyError("no conversation fits the context", f"raise data.context above {context}")
        self._content = content.hexdigest()
        self._epoch = self._bin = 0
        self._planned: tuple[int, list[list[int]]] | None = None

    def _read(self, number: int, name: str, path: Path, weight: float, tokenizer: Tokenizer, content: Any) -> None:
        if weight < 1 or weight != int(weight):
            raise MifyError(
                f"data.sources.{name}.weight = {weight} is no whole number",
                "for sft a weight is how often each conversation is seen in an epoch: 1, 2, …",
            )
        for conversation, line in _conversations(path, tokenizer):
            content.update(line)
            if len(conversation[0]) > self.context:
                self.too_long[number] += 1
                continue
            self._entries += [len(self._conversations)] * int(weight)
            ids, loss = conversation
            identity = hashlib.sha256(line).hexdigest()[:16]
            carries = np.array(loss, np.bool_) & (identity not in self._skip)
            self._conversations.append(Conversation(np.array(ids, np.uint32), carries, number, identity))

    def __iter__(self) -> Iterator[PackedBatch]:
        share = self.rows_per_step // self.world_size
        while True:
            rows = [self._next_row() for _ in range(self.rows_per_step)]
            yield self._batch(rows[self.rank * share : (self.rank + 1) * share])

    def _plan(self) -> list[list[int]]:
        """The bins of the epoch, in their order: entries of `_entries`."""
        if self._planned is None or self._planned[0] != self._epoch:
            key = int(self._content[:16], 16)
            order = Permutation(len(self._entries), self.seed, self._epoch, key, 0, Purpose.DOCUMENT_ORDER)
            drawn = [self._entries[order(place)] for place in range(len(self._entries))]
            lengths = [len(self._conversations[number].ids) for number in drawn]
            bins = best_fit_decreasing(lengths, self.context, self._max_pieces)
            shuffle = Permutation(len(bins), self.seed, self._epoch, key, 0, Purpose.BIN_ORDER)
            self._planned = self._epoch, [[drawn[i] for i in bins[shuffle(place)]] for place in range(len(bins))]
        return self._planned[1]

    def _next_row(self) -> list[int]:
        bins = self._plan()
        row = bins[self._bin]
        for number in row:
            self.tokens[self._conversations[number].source] += len(self._conversations[number].ids)
        self._bin += 1
        if self._bin == len(bins):
            self._epoch, self._bin = self._epoch + 1, 0
        return row

    def _batch(self, rows: list[list[int]]) -> PackedBatch:
        count, context = len(rows), self.context
        tokens = np.full((count, context), self._pad, np.uint32)
        loss = np.zeros((count, context), np.bool_)
        starts: list[int] = []
        row_starts, used = [0], []
        for index, row in enumerate(rows):
            place = 0
            for number in row:
                piece = self._conversations[number]
                starts.append(place)
                tokens[index, place : place + len(piece.ids)] = piece.ids
                loss[index, place : place + len(piece.ids)] = piece.loss
                place += len(piece.ids)
            used.append(place)
            if place < context:
                starts.append(place)
            row_starts.append(len(starts))
        packed = PackedRows(
            tokens,
            np.packbits(loss, axis=1, bitorder="little"),
            np.array(starts, np.int32),
            np.array(row_starts, np.int64),
            np.array(used, np.int32),
        )
        return packed.to_batch(self._max_pieces + 1)

    def state_dict(self) -> dict[str, Any]:
        """The state after the last batch given out."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "identity": self._identity(),
            "epoch": self._epoch,
            "bin": self._bin,
            "tokens": list(self.tokens),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the batch at which the state was taken.

        Raises:
            MifyError: the state is of other conversations, another seed, context or batch.
        """
        if (state.get("format"), state.get("version"), state.get("identity")) != (FORMAT, VERSION, self._identity()):
            raise MifyError(
                "the checkpoint's conversations are others than these", "give the same data, or start a new run"
            )
        self._epoch, self._bin, self.tokens = state["epoch"], state["bin"], list(state["tokens"])

    def documents_after(self, state: dict[str, Any]) -> list[list[str]]:
        """For each row of the global batch that follows `state` its conversations: 64 bits of their lines' SHA-256."""
        other = copy.copy(self)
        other.load_state_dict(state)
        rows = [other._next_row() for _ in range(self.rows_per_step)]
        return [[self._conversations[number].identity for number in row] for row in rows]

    def ledger(self) -> dict[str, Any]:
        """Tokens trained by source, epochs, and the conversations left out because they pass the context."""
        part = self._bin / len(self._planned[1]) if self._planned and self._planned[0] == self._epoch else 0.0
        return {
            name: {"tokens": tokens, "epochs": self._epoch + part, "too_long": too_long}
            for name, tokens, too_long in zip(self.names, self.tokens, self.too_long, strict=True)
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "content": self._content,
            "seed": self.seed,
            "context": self.context,
            "rows_per_step": self.rows_per_step,
        }


def render(messages: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """ChatML ids of a conversation and, for each, whether it carries loss.

    Raises:
        ValueError: no messages, an unknown role, a content that is no text, nothing said by the assistant.
        MifyError: the tokenizer lacks the special tokens.
    """
    start, end, eot = tokenizer.im_start_id, tokenizer.im_end_id, tokenizer.eot_id
    if start is None or end is None or eot is None:
        raise MifyError("the tokenizer lacks <|im_start|>, <|im_end|> or <|endoftext|>", "use one that has them")
    ids: list[int] = []
    loss: list[bool] = []
    for message in messages:
        role, text = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
        if not isinstance(text, str):
            raise ValueError(f"the content of a {role} message is {type(text).__name__}, not text")
        header, body = [start, *tokenizer.encode(f"{role}\n")], [*tokenizer.encode(text), end]
        tail = tokenizer.encode("\n")
        ids += header + body + tail
        loss += [False] * len(header) + [role == "assistant"] * len(body) + [False] * len(tail)
    if not any(loss):
        raise ValueError("the assistant says nothing in it")
    return [*ids, eot], [*loss, False]


def _conversations(path: Path, tokenizer: Tokenizer) -> Iterator[tuple[tuple[list[int], list[bool]], bytes]]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise MifyError(f"{path} holds no .jsonl file of conversations", 'give lines of {"messages": [...]}')
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield render(json.loads(line)["messages"], tokenizer), line.strip() + b"\n"
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise MifyError(
                        f"{file}, line {number}, is no conversation: {error}",
                        'write {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", …}]}',
                    ) from None
