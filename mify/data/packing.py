"""Best-fit decreasing: pieces into bins of one capacity. The readable twin of `csrc/packing/best_fit.cpp`."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def best_fit_decreasing(lengths: Sequence[int], capacity: int, max_pieces: int) -> list[list[int]]:
    """Bins of piece numbers; each bin's lengths sum to at most `capacity` and it has at most `max_pieces` pieces.

    Longest first, ties by number; each goes into the fullest bin that takes it, of equally full ones into the one
    filled last, else into a new bin.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    bins: list[list[int]] = []
    free: list[int] = []
    open_bins: dict[int, list[int]] = {}
    for piece in order:
        length = lengths[piece]
        place = bisect.bisect_left(free, length)
        if place == len(free):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room = free[place]
            number = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[room]
                free.pop(place)
        bins[number].append(piece)
        room -= length
        if room > 0 and len(bins[number]) < max_pieces:
            if room not in open_bins:
                bisect.insort(free, room)
                open_bins[room] = []
            open_bins[room].append(number)
    return bins
