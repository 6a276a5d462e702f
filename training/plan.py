"""What a run will do, before it does it: the configuration as it was resolved, and its arithmetic."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mify.config import ModelConfig, model_config

from .config import TrainConfig
from .display import duration
from .typed_tree import flatten


def print_config(config: TrainConfig) -> None:
    """Every key with its value, and the hash."""
    console = Console(highlight=False)
    console.print(f"run {config.run_folder}  configuration {config.hash[:12]}", markup=False)
    for key, value in flatten(config.to_dict()).items():
        console.print(f"  {key} = {'none' if value is None else value}", markup=False)


def planned_model(config: TrainConfig) -> ModelConfig:
    """The shape that the run's model section asks for (of `init.weights` it is known only once it is read)."""
    shape = {key: value for key, value in vars(config.model).items() if key != "preset" and value is not None}
    return model_config(config.model.preset, **shape, context=config.data.context)


def plan(config: TrainConfig, *, tokens_per_second: float | None = None) -> dict[str, float]:
    """Steps, tokens, FLOPs (6 N D plus attention) and bytes of the run."""
    model = planned_model(config)
    parameters = model.num_parameters()
    tokens = config.steps * config.tokens_per_step
    numbers: dict[str, float] = {
        "parameters": parameters,
        "steps": config.steps,
        "tokens per step": config.tokens_per_step,
        "tokens": tokens,
        "flops (6 N D)": 6 * model.num_non_embedding_parameters() * tokens
        + 6 * model.vocab_size * model.hidden_size * tokens,
        "bytes of weights, gradients and AdamW moments (fp32)": 16 * parameters,
        "bytes of a checkpoint": 12 * parameters,
    }
    if tokens_per_second:
        numbers["seconds at the given speed"] = tokens / tokens_per_second
    return numbers


def print_plan(config: TrainConfig, *, tokens_per_second: float | None = None) -> None:
    """The plan as a table, with the tokens by source."""
    table = Table("quantity", "value", title=f"plan of {config.name}: nothing is run")
    for name, value in plan(config, tokens_per_second=tokens_per_second).items():
        table.add_row(name, duration(value) if name.startswith("seconds") else f"{value:,.0f}")
    total = sum(source.weight for source in config.data.sources.values()) or 1.0
    for name, source in config.data.sources.items():
        share = source.weight / total
        table.add_row(f"tokens from {name}", f"{share * config.steps * config.tokens_per_step:,.0f}  ({share:.1%})")
    Console().print(table)
