"""Fill-in-the-middle, exact at character level without re-tokenizing the document: the readable twin of csrc/packing.

A fragment's text is cut at two characters into prefix, middle and suffix, and the pieces are laid out as

    PSM   <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle <|endoftext|>
    SPM   <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle <|endoftext|>      (variant 2)

Sources: Bavarian et al., arXiv 2207.14255; StarCoder, arXiv 2305.06161 for the layouts. The ids are those that encoding
each piece by itself would give. Three of four cuts fall inside a token, so tokens near a cut change; how far is not
bounded by a constant, but it is decided locally, by two facts about the pre-tokenizer's patterns:

1. *They never look behind.* Where a pre-token of the piece and one of the document begin at the same character, all
   that follows is the same. So right of a cut the piece is pre-tokenized afresh until boundaries coincide.
2. *Some pairs of characters always part* (`boundary_between`), whatever stands around them. So left of a cut the piece
   is encoded afresh from the last such pair.

Between the two the document's tokens stay. `\\s+(?!\\S)` looks one character ahead: boundaries are therefore taken from
the whole piece, never from a part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np

from mify.data.philox import Purpose, below, draw, threshold
from mify.errors import MifyError
from mify.special_tokens import FILE_SEP
from mify.tokenizer import QWEN2_PATTERN, Tokenizer

FIM_ROOM = 16
"""Tokens kept free in a fragment of an overlong document where FIM may apply: three sentinels, the end-of-text token,
and twelve by which the pieces may be longer than the whole (a cut inside a token makes two or three of one)."""

MIN_CONTEXT = 2 * FIM_ROOM


@dataclass(frozen=True, slots=True)
class FimConfig:
    """What is permuted, and how.

    `rate` and `spm_rate` may be anything from 0.0 to 1.0. A document that is permuted at one rate is permuted, with the
    same cuts, at every higher rate.
    """

    rate: float = 0.25
    """Share of documents (of fragments, where a document is overlong) that are permuted."""
    spm_rate: float = 0.5
    """Share of the permuted ones that are laid out as SPM."""
    domains: tuple[str, ...] = ("code",)
    span: Literal["uniform", "line", "syntax"] = "uniform"
    """`uniform`: the cuts are two uniform characters. `line`: two uniform line starts. `syntax`: the middle is a node
    of the syntax tree: a uniform one of those around a uniform character (where none is, as `uniform`); needs shards
    that were written with `syntax`."""

    def __post_init__(self) -> None:
        for name in ("rate", "spm_rate"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise MifyError(f"fim.{name} is {value}", "give a share from 0.0 to 1.0")
        if self.span not in ("uniform", "line", "syntax"):
            raise MifyError(f"fim.span is {self.span!r}", "give 'uniform', 'line' or 'syntax'")


@lru_cache(maxsize=1 << 16)
def character_class(character: str) -> str:
    """'L' letter, 'N' digit or other number, 'S' white space, 'O' other: as the tokenizer's own engine sees them."""
    from tokenizers import Regex, pre_tokenizers

    for name, pattern in (("L", r"\p{L}"), ("N", r"\p{N}"), ("S", r"\s")):
        if not pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(character):
            return name
    return "O"


def boundary_between(before: str, after: str) -> bool:
    """Whether a pre-token always ends between these two characters and does not depend on what follows.

    For the qwen2 pattern: every alternative with letters ends in them; a digit stands alone; white space other than
    line breaks can only begin an alternative or fill one; nothing but white space follows a line break.
    """
    left, right = character_class(before), character_class(after)
    if before in "\r\n":
        return right != "S"
    if left == "S":
        return False
    return left == "N" or right == "N" or (left == "L" and right != "L") or (right == "S" and after not in "\r\n")


def pre_tokens(text: str) -> list[tuple[int, int]]:
    """(start, end) of each pre-token of `text`, in characters."""
    return [offsets for _, offsets in _splitter().pre_tokenize_str(text)]


@lru_cache(maxsize=1)
def _splitter():  # type: ignore[no-untyped-def]
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")


Span = tuple[int, int] | list[int]
"""(start, end) of the document's tokens to copy, or the ids to put in their place."""


@dataclass(frozen=True, slots=True)
class FimPiece:
    """One fragment, permuted: its spans in order, and where in the result the middle begins."""

    spans: list[Span]
    middle_start: int
    mode: int
    """1 PSM, 2 SPM."""

    @property
    def length(self) -> int:
        return sum(len(span) if isinstance(span, list) else span[1] - span[0] for span in self.spans)


class Body:
    """Tokens [start, end) of a document: text that its ids alone reproduce, with the places of its pre-tokens."""

    def __init__(self, tokenizer: Tokenizer, ids: list[int], start: int, end: int) -> None:
        self.tokenizer, self.start, self.end = tokenizer, start, end
        pieces = [tokenizer.token_bytes[i] for i in ids[start:end]]
        self.text = b"".join(pieces).decode()
        leads = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces]
        self.first_character = np.concatenate([[0], np.cumsum(leads)]).astype(np.int64)
        self.boundaries = {first for first, _ in pre_tokens(self.text)} | {len(self.text)}

    def token_at(self, character: int) -> int:
        """The document's token that begins with the character at a pre-token boundary."""
        return self.start + int(np.searchsorted(self.first_character, character, side="right")) - 1

    def encode_piece(self, low: int, high: int) -> list[Span]:
        """Spans whose ids are those of encoding the characters [low, high) by themselves."""
        if low == high:
            return []
        piece = self.text[low:high]
        starts = [low + first for first, _ in pre_tokens(piece)] + [high]
        meet = next((q for q in starts if q in self.boundaries), None)
        part = high
        if high < len(self.text):
            while part > low and not boundary_between(self.text[part - 1], self.text[part]):
                part -= 1
            if part == low:
                part = -1
        if meet is None or meet >= part:
            return [self.tokenizer.encode(piece)]
        # Each pre-token by itself: white space at the end of a part would be cut otherwise than inside the piece.
        new = [q for q in starts if q <= meet]
        head = [i for a, b in pairwise(new) for i in self.tokenizer.encode(self.text[a:b])]
        return [head, (self.token_at(meet), self.token_at(part)), self.tokenizer.encode(self.text[part:high])]


def choose_cuts(
    text: str, span: str, words: tuple[int, int, int, int], nodes: Sequence[tuple[int, int]] = ()
) -> tuple[int, int]:
    """Two sorted cuts in 0 .. len(text), from four random words.

    Args: nodes: characters [start, end) of the syntax nodes, counted from the text's first; those that reach beyond it
        are not chosen.
    """
    first, second = words[0] | words[1] << 32, words[2] | words[3] << 32
    if span == "syntax" and text:
        at = below(first, len(text))
        around = [node for node in nodes if 0 <= node[0] <= at < node[1] <= len(text)]
        if around:
            return around[below(second, len(around))]
    if span == "line":
        lines = [0, *(i + 1 for i, c in enumerate(text) if c == "\n" and i + 1 < len(text)), len(text)]
        cuts = lines[below(first, len(lines))], lines[below(second, len(lines))]
    else:
        cuts = below(first, len(text) + 1), below(second, len(text) + 1)
    return min(cuts), max(cuts)


def plan_fragment(
    tokenizer: Tokenizer,
    ids: list[int],
    start: int,
    end: int,
    *,
    config: FimConfig,
    seed: int,
    epoch: int,
    document: int,
    fragment: int,
    nodes: Sequence[tuple[int, int]] = (),
) -> FimPiece | None:
    """The permuted form of tokens [start, end) of a document, or None where it stays in plain order.

    Leading special tokens (a language separator) stay in front. In a repository document one file is permuted and
    moved to the end. `end` may include the document's end-of-text token. `nodes` are the document's, for `syntax`.
    """
    words = draw(seed, epoch, document, fragment, Purpose.FIM)
    if words[0] >= threshold(config.rate):
        return None
    sentinels = (tokenizer.fim_prefix_id, tokenizer.fim_middle_id, tokenizer.fim_suffix_id, tokenizer.eot_id)
    if None in sentinels:
        raise MifyError("this vocabulary has no FIM tokens", "set fim.rate to 0, or use a tokenizer that has them")
    prefix_id, middle_id, suffix_id, eot_id = (int(i) for i in sentinels if i is not None)
    body_end = end - 1 if ids[end - 1] == eot_id else end
    outside: list[Span] = []
    file_sep = tokenizer.special.get(FILE_SEP)
    files = [i for i in range(start, body_end) if ids[i] == file_sep]
    special = set(tokenizer.special.values())
    if files:
        bounds = [*files, body_end]
        chosen = below(words[2] | words[3] << 32, len(files))
        low, high = bounds[chosen], bounds[chosen + 1]
        code = low + 1
        while code < high and b"\n" not in tokenizer.token_bytes[ids[code]]:
            code += 1
        body_start = min(code + 1, high)
        outside = [(start, low), (high, body_end), (low, body_start)]
        body_end = high
    else:
        body_start = start
        while body_start < body_end and ids[body_start] in special:
            body_start += 1
        outside = [(start, body_start)]
    if body_start >= body_end:
        return None
    body = Body(tokenizer, ids, body_start, body_end)
    before = b"".join(tokenizer.token_bytes[i] for i in ids[:body_start] if i not in special)
    first = sum(byte & 0xC0 != 0x80 for byte in before)
    shifted = [(low - first, high - first) for low, high in nodes]
    a, b = choose_cuts(body.text, config.span, draw(seed, epoch, document, fragment, Purpose.CUT), shifted)
    prefix, middle, suffix = (body.encode_piece(*cut) for cut in ((0, a), (a, b), (b, len(body.text))))
    spm = words[1] < threshold(config.spm_rate)
    if spm:
        ahead = [*outside, [prefix_id, suffix_id], *suffix, [middle_id], *prefix]
    else:
        ahead = [*outside, [prefix_id], *prefix, [suffix_id], *suffix, [middle_id]]
    middle_start = FimPiece(ahead, 0, 0).length
    return FimPiece([*ahead, *middle, [eot_id]], middle_start, 2 if spm else 1)
