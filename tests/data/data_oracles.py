"""What FIM and packing must come to, said another way: encode whole pieces, undo permutations, walk rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tokenizers

from mify.data.plan import WindowPlan
from mify.data.shards import TokenShards
from mify.tokenizer import Tokenizer

MakeShards = Callable[..., TokenShards]
"""make_shards(documents, name="shards", **options of write_shards)."""


@dataclass(frozen=True)
class TextOf:
    """The least that `write_shards` asks of a document."""

    text: str
    domain: str = "code"
    language: str = "python"

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.domain} {self.text}".encode()).hexdigest()


def slow_encoder(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """`tokenizers` itself, without the special tokens, so that text is only text."""
    return tokenizers.Tokenizer.from_str(json.dumps({**tokenizer.definition, "added_tokens": []}))


@dataclass
class Piece:
    """A piece of a plan, as ids."""

    document: int
    fragment: int
    mode: int
    middle: int
    bin: int
    ids: list[int]


def pieces_of(plan: WindowPlan, shards: TokenShards) -> list[Piece]:
    tokens = np.concatenate([np.asarray(part) for part in shards.tokens])
    out = []
    for number in range(plan.num_bins):
        for piece in range(plan.bin_starts[number], plan.bin_starts[number + 1]):
            ids: list[int] = []
            for span in range(plan.span_starts[piece], plan.span_starts[piece + 1]):
                source, length = int(plan.span_source[span]), int(plan.span_length[span])
                ids += (plan.patches[~source:][:length] if source < 0 else tokens[source:][:length]).tolist()
            out.append(
                Piece(
                    int(plan.piece_document[piece]),
                    int(plan.piece_fragment[piece]),
                    int(plan.piece_mode[piece]),
                    int(plan.piece_middle[piece]),
                    number,
                    ids,
                )
            )
    return out


@dataclass
class Permuted:
    """A permuted piece taken apart; in SPM, where the middle begins is known from the plan alone."""

    head: list[int]
    prefix: list[int]
    middle: list[int]
    suffix: list[int]


def take_apart(piece: Piece, tokenizer: Tokenizer) -> Permuted:
    ids, middle = piece.ids, piece.middle
    start = ids.index(tokenizer.fim_prefix_id)
    suffix, marker = ids.index(tokenizer.fim_suffix_id), ids.index(tokenizer.fim_middle_id)
    assert ids[-1] == tokenizer.eot_id
    assert [ids.count(i) for i in (tokenizer.fim_prefix_id, tokenizer.fim_suffix_id, tokenizer.fim_middle_id)] == [
        1
    ] * 3
    if piece.mode == 1:
        assert start < suffix < marker == middle - 1
        return Permuted(ids[:start], ids[start + 1 : suffix], ids[middle:-1], ids[suffix + 1 : marker])
    assert piece.mode == 2
    assert suffix == start + 1 < marker < middle
    return Permuted(ids[:start], ids[marker + 1 : middle], ids[middle:-1], ids[suffix + 1 : marker])


def text_bytes(ids: list[int], tokenizer: Tokenizer) -> bytes:
    return b"".join(tokenizer.token_bytes[i] for i in ids)
