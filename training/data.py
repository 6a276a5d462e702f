"""The token stream of a run's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mify.errors import MifyError

from .config import TrainConfig
from .parallel import World

if TYPE_CHECKING:
    from mify.data.stream import TokenStream


def tokenizer_path(config: TrainConfig) -> Path | None:
    """The run's `tokenizer.json`: of `data.tokenizer`, or the one that lies with the first source."""
    named = config.data.tokenizer or next((source.path for source in config.data.sources.values()), None)
    if named is None:
        return None
    path = Path(named)
    return path / "tokenizer.json" if path.is_dir() else path


def open_stream(config: TrainConfig, world: World) -> TokenStream:
    """This rank's share of the run's batches.

    Raises:
        MifyError: no sources, a missing folder, shards of another tokenizer, rows that ranks do not divide.
    """
    from mify.data.stream import FimConfig, Source, TokenStream

    data = config.data
    if not data.sources:
        raise MifyError(
            "the run has no data.sources",
            "name shards that `mify tokenize` made: --data.sources.code.path=FOLDER --data.sources.code.weight=1",
        )
    for name, source in data.sources.items():
        if not Path(source.path).exists():
            raise MifyError(
                f"data.sources.{name}.path = {source.path} does not exist", "check it, or run `mify tokenize`"
            )
    if data.rows_per_step % world.size:
        raise MifyError(
            f"data.rows_per_step = {data.rows_per_step} does not divide over {world.size} ranks",
            "choose a multiple of the number of ranks",
        )
    return TokenStream(
        [Source(name, Path(source.path), source.weight) for name, source in data.sources.items()],
        context=data.context,
        rows_per_step=data.rows_per_step,
        seed=config.seed,
        fim=FimConfig(rate=data.fim.rate, spm_rate=data.fim.spm_rate, domains=data.fim.domains, span=data.fim.span),
        loss=data.loss,
        exhausted=data.exhausted,
        rank=world.rank,
        world_size=world.size,
    )
