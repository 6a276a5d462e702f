"""Overlong documents are cut into fragments before anything else. The readable twin of `csrc/packing/fragments.cpp`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mify.data.fim import boundary_between

SEARCH = 256
"""How many tokens before the capacity's end a boundary is looked for."""

Fragment = tuple[int, int, bool]
"""(start, end, exact): exact where the fragment's text by itself has the fragment's ids."""


def fragments(
    ids: Sequence[int], token_bytes: Sequence[bytes], context: int, capacity: Callable[[int], int]
) -> Iterator[Fragment]:
    """Tokens [0, len(ids)) in fragments: one where they fit `context`, else each as long as its capacity allows.

    A fragment ends where two characters stand that always part (nearly every token does, so nothing is wasted); where
    there is none in the search range (a line of a thousand `=`) it ends anywhere, and neither neighbour is exact.

    Args: capacity: most tokens of a fragment by its number; at most `context`.
    """
    if len(ids) <= context:
        yield 0, len(ids), True
        return
    start, start_exact, number = 0, True, 0
    while len(ids) - start > capacity(number):
        limit = start + capacity(number)
        part = next((i for i in range(limit, max(start, limit - SEARCH), -1) if _part(ids, token_bytes, i)), None)
        end, exact = (limit, False) if part is None else (part, True)
        yield start, end, start_exact and exact
        start, start_exact, number = end, exact, number + 1
    yield start, len(ids), start_exact


def _part(ids: Sequence[int], token_bytes: Sequence[bytes], place: int) -> bool:
    """Whether the character that ends before token `place` and the one that begins with it always part."""
    before = b"".join(token_bytes[i] for i in ids[max(0, place - 4) : place])
    after = b"".join(token_bytes[i] for i in ids[place : place + 4])
    start = max(0, len(before) - 1)
    while start > 0 and before[start] & 0xC0 == 0x80:
        start -= 1
    lead = after[0]
    size = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    try:
        return boundary_between(before[start:].decode(), after[:size].decode())
    except UnicodeDecodeError:
        return False  # Inside a character.
