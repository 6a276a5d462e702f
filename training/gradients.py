"""Gradients of a global batch: over micro-batches and ranks, normalised by the labelled tokens of all of them.

The mean is taken over tokens (pairs or sequences, where those are the objective's units), never over micro-batches of
unequal length (torchtune #1875), so accumulation over 1, 2 or 4 micro-batches and any number of ranks gives one
gradient up to rounding.

With `parallel.fixed_order` not even rounding differs. The batch is cut into `virtual_shards` parts whatever the world
size; each part's gradient is computed by itself; the parts are added pairwise in a tree, ((g0 + g1) + (g2 + g3)), whose
lower levels lie within ranks and whose upper levels across them. One addition is commutative, so 1, 2 and 4 ranks do
the same arithmetic. It costs an all-gather of the gradients and forgoes sharding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mify.data.batch import PackedBatch
from mify.errors import MifyError
from mify.fp8 import microbatch

from .config import TrainConfig
from .parallel import gradient_sync, is_sharded

if TYPE_CHECKING:
    from .run_state import Run

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """What a step's forward and backward passes came to, equal on all ranks."""

    loss: float  # mean over the global batch's units; in nats a token for language modelling
    tokens: int  # labelled
    stop: bool  # whether any rank was asked to stop
    sums: dict[str, float]  # what the objective sums besides, as means over the units


def accumulate(run: Run, batch: PackedBatch) -> Step:
    """Leaves the global batch's mean gradient in `.grad`."""
    counts = run.world.sum(torch.tensor([batch.num_units, batch.num_labels, run.stop_asked], dtype=torch.int64))
    units, tokens, stop = max(1, int(counts[0])), max(1, int(counts[1])), bool(counts[2])
    if run.config.parallel.fixed_order:
        sums = _in_fixed_order(run, batch, units)
    else:
        sums = _in_any_order(run, batch, units)
    loss, *others = (sums / units).tolist()
    return Step(loss, tokens, stop, dict(zip(run.objective.names, others, strict=True)))


def gradient_factor(run: Run) -> int:
    """What losses are multiplied by: FSDP averages over ranks what must be a sum."""
    return run.world.size if is_sharded(run.model) else 1


def _in_any_order(run: Run, batch: PackedBatch, units: int) -> Tensor:
    world, model = run.world, run.model
    total = _backward(run, batch, gradient_factor(run) / units)
    if world.size > 1 and not is_sharded(model):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = world.sum(_flatten(gradients))
        _unflatten(flat, gradients)
    return world.sum(total)


def _in_fixed_order(run: Run, batch: PackedBatch, units: int) -> Tensor:
    world, shards = run.world, run.config.parallel.virtual_shards
    if shards & (shards - 1) or shards % world.size:
        raise MifyError(
            f"parallel.virtual_shards = {shards} is no power of two that {world.size} ranks divide",
            "choose such a number, or set --parallel.fixed_order=false",
        )
    gradients: list[Tensor] = []
    losses: list[Tensor] = []
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    for part in batch.split(shards // world.size):
        losses.append(_backward(run, part, 1 / units))
        gradients.append(_flatten([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]))
        run.optimizer.zero_grad()
    flat = _over_ranks(run, tree_sum(gradients, torch.add))
    for parameter, piece in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)
    return _over_ranks(run, tree_sum(losses, torch.add))


def _over_ranks(run: Run, value: Tensor) -> Tensor:
    if run.world.size == 1:
        return value
    pieces = [torch.empty_like(value) for _ in range(run.world.size)]
    dist.all_gather(pieces, value)
    return tree_sum(pieces, torch.add)


def _backward(run: Run, batch: PackedBatch, scale: float) -> Tensor:
    """Adds the gradients of `scale` times the summed loss to `.grad`.

    Returns:
        The summed loss, and behind it what the objective sums besides, fp64.
    """
    config, model, device = run.config, run.model, run.world.device
    parts = micro_batches(config, batch)
    total = torch.zeros(1 + len(run.objective.names), dtype=torch.float64, device=device)
    for index, part in enumerate(parts):
        gradient_sync(model, last=index == len(parts) - 1)
        with microbatch(model, first=index == 0):
            loss, sums = run.objective.loss(model, part.to(device, non_blocking=True))
        torch.autograd.backward(loss * scale)
        total += torch.cat([loss.detach().reshape(1), sums])
    return total


def micro_batches(config: TrainConfig, batch: PackedBatch) -> list[PackedBatch]:
    """`batch` in equal parts of at most `data.micro_rows` rows: what goes through the model at a time."""
    rows, most = batch.num_rows, config.data.micro_rows or batch.num_rows
    # A rank's share, or a virtual shard, need not be a multiple of micro_rows, as the whole batch is.
    return batch.split(next(parts for parts in range(-(-rows // most), rows + 1) if rows % parts == 0))


def tree_sum(values: Sequence[T], add: Callable[[T, T], T]) -> T:
    """Adds pairwise: neighbours first, then neighbours of sums. The length must be a power of two."""
    level = list(values)
    while len(level) > 1:
        level = [add(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    return level[0]


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for tensor, piece in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))
