"""What a stream draws from, and what is checked of it before the first batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mify.errors import MifyError

Exhausted = Literal["repeat", "stop", "reweight"]
"""What follows when a source has been seen once."""


@dataclass(frozen=True, slots=True)
class Source:
    """Shards to draw from, and their share of the trained tokens relative to the other sources' weights."""

    name: str
    path: str | Path
    weight: float


def check_sources(
    sources: Sequence[Source], rows_per_step: int, rank: int, world_size: int, exhausted: str, loss: str
) -> None:
    if not sources:
        raise MifyError("the stream has no sources", "give at least one Source(name, path, weight)")
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise MifyError(f"two sources have the same name: {sorted(names)}", "give each a name of its own")
    for source in sources:
        if not 0 < source.weight < float("inf"):
            raise MifyError(
                f"source {source.name!r} has the weight {source.weight}", "give a positive number, or leave it out"
            )
        if not Path(source.path).is_dir():
            raise MifyError(f"source {source.name!r}: {source.path} does not exist", "check it, or run `mify tokenize`")
    if rows_per_step < 1 or world_size < 1 or rows_per_step % world_size:
        raise MifyError(
            f"rows_per_step = {rows_per_step} does not divide over {world_size} ranks",
            "choose a positive multiple of the number of ranks",
        )
    if not 0 <= rank < world_size:
        raise MifyError(f"rank {rank} is not below world_size {world_size}", "give a rank from 0 on")
    if exhausted not in ("repeat", "stop", "reweight"):
        raise MifyError(f"exhausted is {exhausted!r}", "give 'repeat', 'stop' or 'reweight'")
    if loss not in ("all", "middle"):
        raise MifyError(f"loss is {loss!r}", "give 'all' or 'middle'")
