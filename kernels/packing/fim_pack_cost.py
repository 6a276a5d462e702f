"""Bytes that the gather-and-patch pass moves; see `mify.kernels.cost` for how they are counted."""

from __future__ import annotations

from mify.kernels.cost import INT32, INT64, Cost


def unpack_rows(tokens: int, segments: int, *, token: int = 2) -> Cost:
    """Packed rows to int64 tokens, labels and positions: a row's token and loss bit read, 24 bytes written."""
    return Cost(0, tokens * token + tokens // 8 + segments * INT32, 3 * tokens * INT64 + segments * INT32)


def pack_spans(tokens: int, segments: int, spans: int, *, token: int = 2) -> Cost:
    """The same gathered by spans: a token read from a buffer or from patches, a span's source and start."""
    tables = spans * (INT64 + INT32) + 2 * segments * INT32
    return Cost(0, tokens * token + tables, 3 * tokens * INT64 + segments * INT32)
