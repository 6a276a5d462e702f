"""What a run will do, before it does it: the configuration as it was resolved, and its arithmetic.

FLOPs and bytes come from `mify.kernels.cost`, the model that `mify plan` and the benches use. Nothing here is a
measurement, except the rate of matrix products on a CPU, which the least possible time is computed from.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mify.config import ModelConfig
from mify.files import read_json
from mify.hardware import cpu, gpu_spec, gpus
from mify.kernels import cost
from mify.typed_tree import flatten

from .config import TrainConfig
from .display import duration
from .model import planned_shape

ASSUMED_MFU = 0.40


@dataclass(frozen=True)
class SourcePlan:
    """Tokens that a source will give, and how often that reads it (None where its shards are not there yet)."""

    tokens: float
    share: float
    epochs: float | None


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run. FLOPs count only visible pairs, in documents as long as the context (the most)."""

    model: ModelConfig
    ranks: int
    steps: int
    tokens_per_step: int
    flops_per_token: float
    weight_bytes: int
    state_bytes: int  # of a rank: weights, gradients and moments, fp32, sharded where the run shards
    activation_bytes: int  # of a rank
    checkpoint_bytes: int
    sources: dict[str, SourcePlan]

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> float:
        return self.flops_per_token * self.tokens


def make_plan(config: TrainConfig) -> Plan:
    """The plan for as many ranks as torchrun announces (or one)."""
    model, parallel, data = planned_shape(config), config.parallel, config.data
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    parameters = model.num_parameters()
    sharded_over = 1
    if ranks > 1 and not parallel.fixed_order and parallel.shard != "none":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks)))
        sharded_over = ranks if parallel.shard == "fsdp" else parallel.hsdp_shards or local
    rows = min(data.micro_rows or data.rows_per_step, -(-data.rows_per_step // ranks))
    element = 2 if parallel.bf16 else 4
    activations = cost.activation_bytes(
        model, rows * data.context, checkpointing=parallel.activation_checkpointing != "none", element=element
    )
    total = sum(source.weight for source in data.sources.values()) or 1.0
    tokens = config.steps * config.tokens_per_step
    sources = {}
    for name, source in data.sources.items():
        share = source.weight / total
        there = Path(source.path) / "meta.json"
        stored = sum(read_json(there)["tokens_by_domain"].values()) if there.is_file() else None
        sources[name] = SourcePlan(share * tokens, share, share * tokens / stored if stored else None)
    return Plan(
        model,
        ranks,
        config.steps,
        config.tokens_per_step,
        cost.flops_per_token(model, data.context),
        4 * parameters,
        cost.StateBytes().kept * parameters // sharded_over,
        activations,
        12 * parameters,
        sources,
    )


def print_config(config: TrainConfig) -> None:
    """Every key with its value, and the hash."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"run {config.run_folder}  configuration {config.hash[:12]}", markup=False)
    for key, value in flatten(config.to_dict()).items():
        console.print(f"  {key} = {'none' if value is None else value}", markup=False)


def print_plan(config: TrainConfig) -> None:
    """The plan as a table: steps, tokens by source, memory, time. Runs nothing but one matrix product on a CPU."""
    plan = make_plan(config)
    table = Table("quantity", "value", "how", title=f"{config.name}: the plan, nothing is trained")
    table.add_row("parameters", f"{plan.model.num_parameters():,}", plan.model.name)
    table.add_row("steps", f"{plan.steps:,}", "")
    table.add_row("tokens", f"{plan.tokens:,}", f"{plan.tokens_per_step:,} a step")
    for name, source in plan.sources.items():
        epochs = "shards not there yet" if source.epochs is None else f"{source.epochs:.2f} epochs"
        table.add_row(f"  from {name}", f"{source.tokens:,.0f}", f"{source.share:.1%}, {epochs}")
    table.add_row("FLOPs", f"{plan.flops:.3g}", "6 N D, and attention over visible pairs, documents of a whole context")
    table.add_row("weights, gradients, moments", _bytes(plan.state_bytes), f"fp32, on each of {plan.ranks} rank(s)")
    table.add_row("activations", _bytes(plan.activation_bytes), "of a micro-batch, at most")
    table.add_row("a checkpoint", _bytes(plan.checkpoint_bytes), "weights and moments, fp32")
    table.add_row("time", *_time(config, plan))
    Console().print(table)


def _time(config: TrainConfig, plan: Plan) -> tuple[str, str]:
    found = gpus()
    if config.parallel.device != "cpu" and found:
        peak = gpu_spec(found[0].name).bf16_flops
        seconds = plan.flops / (peak * plan.ranks * ASSUMED_MFU)
        return duration(seconds), f"predicted: {plan.ranks} x {found[0].name} at an assumed MFU of {ASSUMED_MFU:.0%}"
    rate = matmul_rate(config.parallel.threads)
    return (
        f"at least {duration(plan.flops / rate)}",
        f"at {rate / 1e9:.0f} GFLOP/s, measured just now in a matrix product on {cpu().name}",
    )


def matmul_rate(threads: int | None = None) -> float:
    """fp32 FLOP/s of a product of 512 x 512 matrices here, the best of a few."""
    import torch

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        a = torch.randn(512, 512)
        best = float("inf")
        for _ in range(8):
            start = time.perf_counter()
            torch.mm(a, a)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * 512**3 / best


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
