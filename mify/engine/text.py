"""Tokens to text as they come."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mify.tokenizer import Tokenizer


class StopStrings:
    """Finds the token that completes one of some texts."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._bytes = tokenizer.token_bytes
        self._marks = [(text, text.encode()) for text in stop]
        self._keep = max(len(mark) for _, mark in self._marks) - 1
        self._tail = b""

    def push(self, token: int) -> str | None:
        """The text that `token` completes, or None."""
        seen = self._tail + (self._bytes[token] if token < len(self._bytes) else b"")
        self._tail = seen[len(seen) - self._keep :] if len(seen) > self._keep else seen
        found = [(place, text) for text, mark in self._marks if (place := seen.find(mark)) >= 0]
        return min(found)[1] if found else None


class TextPieces:
    """The text of one request in pieces: whole characters, cut before the first stop string.

    What may be the beginning of a stop string is held back until it is known.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, skip_special: bool = False) -> None:
        self._bytes = tokenizer.token_bytes
        self._special = frozenset(tokenizer.special.values() if skip_special else ())
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain with this token."""
        if self.stopped or token in self._special:
            return ""
        return self._cut(self._decoder.decode(self._bytes[token] if token < len(self._bytes) else b""))

    def end(self) -> str:
        """What was held back, at the end."""
        piece = self._cut(self._decoder.decode(b"", final=True)) if not self.stopped else ""
        piece, self._held = piece + self._held, ""
        return piece

    def _cut(self, new: str) -> str:
        text = self._held + new
        places = [place for mark in self._stop if (place := text.find(mark)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, mark) for mark in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, mark: str) -> int:
    """The longest end of `text` that `mark` begins with."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
