# mypy: disable-error-code="no-untyped-def"
"""Search in a rising table, for Triton kernels: in which segment or span a token lies."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find(starts_ptr, first, count, at):
    """The last of `count` entries from `first` on that starts at or before `at`, and where it starts; (0, 0) where
    there are none. The steps are the same for all of `at`.
    """
    found = tl.zeros_like(at)
    step = tl.full((), 1, tl.int64)
    while step < count:
        step = step * 2
    while step > 0:
        candidate = found + step
        inside = candidate < count
        start = tl.load(starts_ptr + first + candidate, mask=inside, other=0)
        found = tl.where(inside & (start <= at), candidate, found)
        step = step // 2
    return found, tl.load(starts_ptr + first + found, mask=found < count, other=0).to(tl.int64)
