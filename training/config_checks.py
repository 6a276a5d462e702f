"""What contradicts itself in a run's configuration, or lies out of range."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mify.errors import MifyError

if TYPE_CHECKING:
    from .config import DataSection, TrainConfig


def check(config: TrainConfig) -> None:
    """Raises `MifyError` naming the key, its value and what would be right."""
    data, schedule, parallel = config.data, config.schedule, config.parallel
    positive = {
        "steps": config.steps,
        "data.context": data.context,
        "data.rows_per_step": data.rows_per_step,
        "data.micro_rows": data.micro_rows,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "checkpoint.keep_last": config.checkpoint.keep_last,
        "evaluation.every_steps": config.evaluation.every_steps,
        "logging.every_steps": config.logging.every_steps,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "parallel.threads": parallel.threads,
        "parallel.virtual_shards": parallel.virtual_shards,
        "stability.max_skips": config.stability.max_skips,
    }
    for key, value in positive.items():
        if value is not None and not value > 0:
            raise MifyError(f"{key} = {value} must be above 0", f"give --{key}= a positive value")
    shares = {"data.fim.rate": data.fim.rate, "data.fim.spm_rate": data.fim.spm_rate, "schedule.floor": schedule.floor}
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise MifyError(f"{key} = {value} must lie between 0 and 1", f"give --{key}= a share")
    if schedule.warmup_steps + (schedule.decay_steps or 0) > config.steps:
        raise MifyError(
            f"schedule.warmup_steps + schedule.decay_steps pass steps = {config.steps}",
            "make the run longer or those shorter",
        )
    _check_data(data)
    _check_parallel(config)
    if config.lora.rank is not None and parallel.fp8:
        raise MifyError("lora does not go with fp8: its layers are plain", "use --parallel.precision=bf16 or fp32")
    if config.lora.adapter is not None and config.lora.rank is None:
        raise MifyError("lora.adapter is set and lora.rank is not", "set --lora.rank to the adapter's")
    if config.objective != "cpt" and data.fim.rate:
        raise MifyError(f"{config.objective} has no fill-in-the-middle", "set --data.fim.rate=0")
    if config.objective in ("dpo", "grpo"):
        _check_preference(config)
    if config.init.weights and config.init.state:
        raise MifyError("init.weights and init.state are both set", 'set one of them to "none"')
    if "/" in config.name or not config.name.strip(". "):
        raise MifyError(f"name = {config.name!r} is no folder name", "choose a plain name; folder= says where it lies")


def _check_data(data: DataSection) -> None:
    if data.micro_rows is not None and data.rows_per_step % data.micro_rows:
        raise MifyError(
            f"data.rows_per_step = {data.rows_per_step} is no multiple of data.micro_rows = {data.micro_rows}",
            "choose a micro batch that divides the batch",
        )
    stages = data.conversations.stages
    if any(size < 1 for size in stages) or list(stages) != sorted(set(stages)) or data.conversations.stage_epochs < 1:
        raise MifyError(
            f"data.conversations.stages = {list(stages)} with {data.conversations.stage_epochs} epochs each",
            "give growing numbers of conversations, and at least one epoch",
        )
    for identity in data.skip:
        if re.fullmatch("[0-9a-f]{16,64}", identity) is None:
            raise MifyError(
                f"data.skip holds {identity!r}, which is no document's id",
                "give ids as metrics.jsonl lists them under documents: 16 hexadecimal digits",
            )


def _check_parallel(config: TrainConfig) -> None:
    parallel = config.parallel
    if parallel.fixed_order and parallel.precision != "fp32":
        raise MifyError("parallel.fixed_order needs parallel.precision = fp32", "set one of the two")
    if parallel.fp8 and config.fp8.recipe == "delayed" and parallel.compile:
        raise MifyError(
            "parallel.compile does not go with fp8.recipe = delayed: a compiled backward pass cannot write down the "
            "largest values that delayed scaling lives on",
            "use --fp8.recipe=block or current, or --parallel.compile=false",
        )
    if parallel.fp8 and config.fp8.backend == "te":
        if not parallel.bf16:
            raise MifyError("fp8.backend = te computes on bf16 activations", "use --parallel.precision=fp8")
        if config.fp8.recipe == "delayed" and parallel.activation_checkpointing != "none":
            raise MifyError(
                "parallel.activation_checkpointing runs a layer twice within a step, which Transformer Engine's "
                "delayed scaling does not allow",
                "use --fp8.recipe=block or current, --fp8.backend=torch, or no activation checkpointing",
            )


def _check_preference(config: TrainConfig) -> None:
    if not config.init.weights:
        raise MifyError(
            f"{config.objective} starts from a model and is held to it",
            "set --init.weights=RUN, to a model that can answer",
        )
    if config.optimizer.z_loss:
        raise MifyError(f"{config.objective} has no z-loss", "set --optimizer.z_loss=0")
    mixed = next((name for name, source in config.data.sources.items() if source.parts is not None), None)
    if mixed is not None:
        raise MifyError(
            f"data.sources.{mixed}.parts belongs to sft",
            f"for {config.objective} give a weight: 1, 2, … times an epoch",
        )
    if config.objective == "grpo" and config.data.skip:
        raise MifyError("grpo cannot blank a task: data.skip is of no use", "take the task out of its file")
    if config.objective == "grpo" and config.grpo.max_new_tokens >= config.data.context:
        raise MifyError(
            f"grpo.max_new_tokens = {config.grpo.max_new_tokens} leaves no room for a prompt in data.context = "
            f"{config.data.context}",
            "lower one or raise the other",
        )
