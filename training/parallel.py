"""Where the work lies: process groups, devices, FSDP2 and HSDP, activation checkpointing, compilation.

One code for a CPU process, gloo on CPUs and nccl on GPUs: torch's own engine does the work.
"""

from __future__ import annotations

import functools
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from mify.errors import MifyError
from mify.hardware import gpu_spec

from .config import ParallelSection

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """The element-wise maximum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's object on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's object, in their order, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def open_world(config: ParallelSection) -> Iterator[World]:
    """Joins the process group that torchrun announces (or stands alone) and applies the process-wide settings.

    Settings that outlive the run (thread count, deterministic algorithms) are put back at the end.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    kind = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise MifyError(
            "parallel.device = cuda, but torch finds no CUDA device", "run `mify doctor`, or use --parallel.device=cpu"
        )
    device = torch.device("cuda", local_rank) if kind == "cuda" else torch.device("cpu")
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
    if kind == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    joined = (size > 1 or config.bf16) and not dist.is_initialized()
    if joined:
        # FSDP does the mixed precision, so a lone rank that wants it is a group of one.
        store = HashStore() if size == 1 else None
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30), store=store, rank=rank, world_size=size)
    try:
        yield World(rank, size, local_size, device)
    finally:
        if joined:
            dist.destroy_process_group()
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of `mify.model.Model`: the unit of sharding, checkpointing and compilation."""
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    return layers


def shards(config: ParallelSection, world: World) -> bool:
    """Whether the model goes through FSDP: for sharding, or for its mixed precision."""
    return config.bf16 or (world.size > 1 and config.shard != "none" and not config.fixed_order)


def distribute(model: M, config: ParallelSection, world: World, weights: dict[str, Tensor] | None = None) -> M:
    """Applies activation checkpointing, per-layer compilation and sharding to `model`, in place, and moves it.

    Args:
        model: where the run shards it may be on the meta device: then `weights` are dealt out from rank 0, which alone
            needs them, and no rank ever holds more of the model than its shard.
    """
    layers = layers_of(model)
    if config.activation_checkpointing != "none":
        for layer in layers:
            _checkpoint_activations(layer, selective=config.activation_checkpointing == "selective")
    if config.compile:
        for layer in layers:
            layer.compile(fullgraph=True)
    if not shards(config, world):
        return model.to(world.device)
    options: dict[str, Any] = {"mesh": _mesh(config, world)}
    if config.bf16:
        # Inputs keep their types: rotary angles must stay fp32.
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    if next(model.parameters()).is_meta:
        model.to_empty(device=world.device)
        deal = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        dealt: dict[str, Any] = dict(weights or {})
        set_model_state_dict(model, dealt, options=deal)
    else:
        model.to(world.device)
    register_fsdp_forward_method(model, "loss")
    register_fsdp_forward_method(model, "log_probs")
    return model


def _mesh(config: ParallelSection, world: World) -> DeviceMesh:
    if config.shard == "fsdp":
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    group = 1 if config.shard == "none" else config.hsdp_shards or world.local_size
    if world.size % group:
        raise MifyError(
            f"{world.size} ranks do not divide into sharding groups of {group}",
            "set --parallel.hsdp_shards to a divisor of the number of ranks",
        )
    return init_device_mesh(world.device.type, (world.size // group, group), mesh_dim_names=("replicate", "shard"))


# What selective checkpointing keeps: the outputs that cost the most to compute again per byte, products and attention
# by whichever library. All else is recomputed. By name, since an op exists only where its library was loaded.
_KEPT = frozenset(
    {
        "aten::mm",
        "aten::_scaled_mm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_flash_attention_forward",
        "flash_attn::_flash_attn_varlen_forward",
        "flash_attn_3::fwd",
        "mify::gqa_attention",
        "mify::fp8_matmul",
    }
)


def _checkpoint_activations(layer: nn.Module, *, selective: bool) -> None:
    """Recomputes `layer` in the backward pass. The forward is replaced on the instance, so parameter names stay."""
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op.name() in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE

    extra: dict[str, Any] = {}
    if selective:
        extra["context_fn"] = functools.partial(create_selective_checkpoint_contexts, policy)
    forward = layer.forward

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **extra, **kwargs)

    layer.forward = recomputed  # on the instance: module paths, and so parameter names, stay as they are


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def gradient_sync(model: nn.Module, last: bool) -> None:
    """Under FSDP: reduce gradients only with the last micro-batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_is_last_backward(last)


def global_norm(model: nn.Module, clip: float | None) -> float:
    """The gradient's L2 norm over all parameters and ranks, after which gradients are scaled down to `clip`."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, clip if clip is not None else float("inf"), error_if_nonfinite=False)
    full = getattr(norm, "full_tensor", None)
    return float(full() if full else norm)


def memory_bytes(world: World) -> int:
    """The most memory used so far: of the GPU, or of the process (resident)."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_flops(world: World) -> float | None:
    """The GPU's bf16 FLOP/s by its data sheet; None for a CPU, or a GPU that is not in the list."""
    if world.device.type != "cuda":
        return None
    try:
        return gpu_spec(torch.cuda.get_device_name(world.device)).bf16_flops
    except MifyError:
        return None
