"""The token stream of a run's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mify.errors import MifyError

from .config import TrainConfig
from .parallel import World
from .prefetch import Stream

if TYPE_CHECKING:
    from mify.data.stream import TokenStream
    from mify.tokenizer import Tokenizer


def tokenizer_path(config: TrainConfig) -> Path | None:
    """The run's `tokenizer.json`: of `data.tokenizer`; else the one that lies with the first source's token shards, or,
    where the data are texts, with the weights that the run starts from."""
    if config.data.tokenizer is None and config.objective != "cpt":
        beside = Path(config.init.weights or ".") / "tokenizer.json"
        return beside if config.init.weights and beside.is_file() else None
    named = config.data.tokenizer or next((source.path for source in config.data.sources.values()), None)
    if named is None:
        return None
    path = Path(named)
    return path / "tokenizer.json" if path.is_dir() else path


def open_stream(config: TrainConfig, world: World) -> Stream:
    """This rank's share of the run's batches.

    Raises:
        MifyError: no sources, a missing folder, shards of another tokenizer, rows that ranks do not divide.
    """
    data = config.data
    if not data.sources:
        raise MifyError(
            "the run has no data.sources",
            "name shards that `mify tokenize` made: --data.sources.code.path=FOLDER --data.sources.code.weight=1",
        )
    if config.objective == "sft":
        return _conversations(config, world)
    if config.objective == "dpo":
        return _preferences(config, world)
    if config.objective == "grpo":
        return _rollouts(config, world)
    from mify.data.stream import FimConfig, Source, TokenStream

    stream = TokenStream(
        [Source(name, Path(source.path), source.weight) for name, source in data.sources.items()],
        context=data.context,
        rows_per_step=data.rows_per_step,
        seed=config.seed,
        fim=FimConfig(rate=data.fim.rate, spm_rate=data.fim.spm_rate, domains=data.fim.domains, span=data.fim.span),
        loss=data.loss,
        exhausted=data.exhausted,
        skip=data.skip,
        rank=world.rank,
        world_size=world.size,
    )
    _check_supply(stream, config)
    return stream


SUPPLY_MARGIN = 1.25
"""Rows also hold sentinels and padding, so data last a little longer than their tokens say. What they surely do not
last for is refused."""


def _check_supply(stream: TokenStream, config: TrainConfig) -> None:
    """Raises MifyError where data that are not repeated end before the run does."""
    policy = config.data.exhausted
    if policy == "repeat":
        return
    epochs = stream.expected_epochs(config.steps)
    if policy == "stop":
        name, share = max(epochs.items(), key=lambda item: item[1])
        what = f"the source {name!r} lasts"
    else:
        share = config.steps * config.data.rows_per_step * config.data.context / stream.num_tokens
        what = "the sources together last"
    if share > SUPPLY_MARGIN:
        raise MifyError(
            f"{what} for about {config.steps / share:.0f} of the run's {config.steps} steps, and data.exhausted is "
            f"{policy!r}",
            "set --steps lower, --data.exhausted=repeat, or tokenize more documents",
        )


def _conversations(config: TrainConfig, world: World) -> Stream:
    from .objectives.conversations import Source
    from .objectives.sft import ConversationStream

    data = config.data
    return ConversationStream(
        [Source(name, Path(source.path), source.weight, source.parts) for name, source in data.sources.items()],
        _named_tokenizer(config),
        context=data.context,
        rows_per_step=data.rows_per_step,
        seed=config.seed,
        rules=data.conversations,
        rank=world.rank,
        world_size=world.size,
        skip=data.skip,
        cache=config.run_folder / "conversations",
    )


def _preferences(config: TrainConfig, world: World) -> Stream:
    from .objectives.dpo import PreferenceStream

    data = config.data
    return PreferenceStream(
        [(name, Path(source.path), source.weight) for name, source in data.sources.items()],
        _named_tokenizer(config),
        context=data.context,
        rows_per_step=data.rows_per_step,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        skip=data.skip,
    )


def _rollouts(config: TrainConfig, world: World) -> Stream:
    from .objectives.rollout_stream import RolloutStream

    return RolloutStream(config, _named_tokenizer(config), world)


def _named_tokenizer(config: TrainConfig) -> Tokenizer:
    from mify.tokenizer import Tokenizer

    path = tokenizer_path(config)
    if path is None:
        raise MifyError(
            f"{config.objective} needs a tokenizer, and none lies with init.weights", "set --data.tokenizer=FOLDER"
        )
    return Tokenizer.load(path)
