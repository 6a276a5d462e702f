"""What a training run will take: parameters, FLOPs, memory a GPU by sharding choice, communication, days.

Everything here is arithmetic on the cost model (`mify.kernels.cost`, the one the benches compute rooflines from) and
on data sheets (`mify.hardware`). It predicts; it measures nothing. Every figure carries the arithmetic it came from.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from mify.config import ModelConfig
from mify.errors import MifyError
from mify.hardware import GpuSpec, gpu_spec
from mify.kernels import cost
from mify.plan_lines import OPTIMAL_TOKENS_PER_PARAMETER, Line, lines_of

# Assumed, and printed as such: what a CUDA context, NCCL's buffers and the allocator's slack take on a GPU.
RESERVED_BYTES = 5 << 30
# Assumed, and printed as such: one 400 Gb/s adapter a GPU between nodes; 70% of a link's rate is reached.
BETWEEN_NODES = 50e9
LINK_EFFICIENCY = 0.7

_SUFFIX = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_count(text: str, what: str = "tokens") -> int:
    """ "4.2T" → 4,200,000,000,000; also K, M, B, plain digits, and "_" or "," between digits."""
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([KMBT]?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise MifyError(f"{text!r} is not a number of {what}", "write it like 4.2T, 200B, 50M or 1000000")
    value = float(match[1].replace("_", "").replace(",", "")) * _SUFFIX[match[2].upper()]
    if value < 1:
        raise MifyError(f"{text!r} is not a number of {what} above 0", "write it like 4.2T, 200B, 50M or 1000000")
    return round(value)


def parse_gpus(text: str) -> tuple[int, GpuSpec]:
    """ "64xH100" → (64, the H100's peaks); "H200" is one."""
    match = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?([A-Za-z][\w-]*)", text.strip(), re.IGNORECASE)
    if match is None or match[1] == "0":
        raise MifyError(f"{text!r} names no GPUs", "write it like 64xH100 or 8xH200")
    return int(match[1] or 1), gpu_spec(match[2])


@dataclass(frozen=True, slots=True)
class Run:
    """What is planned.

    Args:
        document: mean length of a packed document in tokens, which decides the pairs that attention sees; at most the
            context.
        mfu: model FLOPs reached over the data sheet's bf16 peak.
        global_batch_tokens: tokens an optimizer step.
        rows: rows of `context` tokens on a GPU at a time.
    """

    model: ModelConfig
    tokens: int
    gpu: GpuSpec
    num_gpus: int
    mfu: float = 0.40
    document: int = 0
    global_batch_tokens: int = 2 * 2**20
    rows: int = 1
    context: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "context", self.context or self.model.context)
        object.__setattr__(self, "document", self.document or self.context)
        if not 0 < self.mfu <= 1:
            raise MifyError(f"an MFU of {self.mfu:g} is not above 0 and at most 1", "give a fraction such as 0.4")
        for name in ("tokens", "num_gpus", "global_batch_tokens", "rows", "context", "document"):
            if getattr(self, name) < 1:
                raise MifyError(f"{name} is {getattr(self, name)}", "give a number of at least 1")
        if self.document > self.context:
            raise MifyError(
                f"a mean document of {self.document} tokens does not fit a context of {self.context}",
                "give a mean document of at most the context",
            )


@dataclass(frozen=True, slots=True)
class Sharding:
    """Memory and communication of one GPU under one way to shard. Bytes; seconds a step.

    Args:
        state_bytes: fp32 master weights, gradients and Adam moments that live on the GPU.
        gathered_bytes: bf16 weights (and a gradient) of the layers that are whole at one moment.
        activation_bytes, checkpointed_bytes: activations without and with activation checkpointing.
        communication_seconds: predicted from the links' rates, before any of it is hidden behind compute.
    """

    name: str
    what: str
    state_bytes: int
    gathered_bytes: int
    activation_bytes: int
    checkpointed_bytes: int
    communication_bytes: int
    communication_seconds: float
    memory_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.state_bytes + self.gathered_bytes + self.activation_bytes + RESERVED_BYTES

    @property
    def total_checkpointed_bytes(self) -> int:
        return self.state_bytes + self.gathered_bytes + self.checkpointed_bytes + RESERVED_BYTES

    @property
    def fits(self) -> str:
        """ "yes", "with checkpointing" or "no"."""
        if self.total_bytes <= self.memory_bytes:
            return "yes"
        return "with checkpointing" if self.total_checkpointed_bytes <= self.memory_bytes else "no"


@dataclass(frozen=True, slots=True)
class Plan:
    """The predictions, as figures and as lines of arithmetic."""

    run: Run
    figures: dict[str, float]
    lines: dict[str, list[Line]]
    shardings: list[Sharding]
    chosen: str | None
    advice: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "format": "mify.plan",
            "version": 1,
            "run": {
                "model": self.run.model.to_dict(),
                "tokens": self.run.tokens,
                "gpu": self.run.gpu.name,
                "num_gpus": self.run.num_gpus,
                "mfu": self.run.mfu,
                "document": self.run.document,
                "context": self.run.context,
                "rows": self.run.rows,
                "global_batch_tokens": self.run.global_batch_tokens,
            },
            "figures": self.figures,
            "lines": {part: [asdict(line) for line in lines] for part, lines in self.lines.items()},
            "shardings": [
                asdict(sharding)
                | {
                    "total_bytes": sharding.total_bytes,
                    "total_checkpointed_bytes": sharding.total_checkpointed_bytes,
                    "fits": sharding.fits,
                }
                for sharding in self.shardings
            ],
            "chosen": self.chosen,
            "advice": self.advice,
            "assumptions": {
                "reserved_bytes": RESERVED_BYTES,
                "between_nodes_bytes_per_second": BETWEEN_NODES,
                "link_efficiency": LINK_EFFICIENCY,
            },
        }


def make_plan(run: Run) -> Plan:
    """Predicts a run. Pure: the same `run` gives the same plan on any machine."""
    model, gpu = run.model, run.gpu
    counts = cost.parameters(model)
    multiplied = cost.matmul_parameters(model)
    linear = 6 * multiplied
    attention = cost.flops_per_token(model, run.document) - linear
    per_token = linear + attention
    total = per_token * run.tokens
    rate = run.num_gpus * gpu.bf16_flops * run.mfu
    seconds = total / rate
    tokens_per_second = rate / per_token

    micro_tokens = run.rows * run.context
    accumulation = max(1, round(run.global_batch_tokens / (micro_tokens * run.num_gpus)))
    batch = accumulation * micro_tokens * run.num_gpus
    micro_seconds = micro_tokens * per_token / (gpu.bf16_flops * run.mfu)
    shardings = [
        sharding for kind in ("DDP", "FSDP2", "HSDP") if (sharding := _sharding(run, kind, accumulation)) is not None
    ]
    chosen, advice = _choose(shardings, accumulation * micro_seconds)

    per_parameter = run.tokens / counts.total
    same_compute = math.sqrt(total / (6 * OPTIMAL_TOKENS_PER_PARAMETER))
    figures = {
        "parameters": counts.total,
        "matmul_parameters": multiplied,
        "flops_per_token": per_token,
        "total_flops": total,
        "days": seconds / 86400,
        "gpu_hours": seconds / 3600 * run.num_gpus,
        "tokens_per_second": tokens_per_second,
        "tokens_per_second_per_gpu": tokens_per_second / run.num_gpus,
        "steps": math.ceil(run.tokens / batch),
        "global_batch_tokens": batch,
        "gradient_accumulation": accumulation,
        "step_seconds": accumulation * micro_seconds,
        "tokens_per_parameter": per_parameter,
        "times_compute_optimal": per_parameter / OPTIMAL_TOKENS_PER_PARAMETER,
        "compute_optimal_tokens": OPTIMAL_TOKENS_PER_PARAMETER * counts.total,
        "same_compute_optimal_parameters": same_compute,
        "token_shard_bytes": run.tokens * (2 if model.vocab_size <= 65_536 else 4),
        "checkpoint_bytes": 12 * counts.total,
    }
    return Plan(run, figures, lines_of(run, counts, figures, attention), shardings, chosen, advice)


def _sharding(run: Run, kind: str, accumulation: int) -> Sharding | None:
    model, gpu, gpus = run.model, run.gpu, run.num_gpus
    state = cost.StateBytes()
    counts = cost.parameters(model)
    per_node = min(gpu.gpus_per_node, gpus)
    nodes = math.ceil(gpus / gpu.gpus_per_node)
    inside, between = gpu.nvlink_bandwidth * LINK_EFFICIENCY, BETWEEN_NODES * LINK_EFFICIENCY
    micro_tokens = run.rows * run.context
    layer = (counts.attention + counts.ffn + counts.norms) // model.num_layers
    # Two layers are whole at once (the one computed and the one prefetched) with one gradient, beside the root's group.
    gathered = (2 * layer + counts.embedding + counts.head) * state.compute + layer * state.gradient
    if kind == "DDP":
        what = "a whole copy on every GPU"
        kept, whole = counts.total * state.kept, counts.total * state.compute
        # Ring all-reduce of fp32 gradients, once a step: 2 · bytes · (n − 1) / n.
        moved = 2 * counts.total * state.gradient * (gpus - 1) // gpus
        seconds = moved / (inside if nodes == 1 else between)
    elif kind == "FSDP2":
        if gpus == 1:
            return None
        what = f"over all {gpus}"
        kept, whole = counts.total * state.kept // gpus, gathered
        # A micro-batch: bf16 weights gathered for forward and again for backward, fp32 gradients scattered.
        moved = accumulation * counts.total * (2 * state.compute + state.gradient) * (gpus - 1) // gpus
        seconds = moved / (inside if nodes == 1 else between)
    else:
        if nodes == 1:
            return None
        what = f"over {per_node} in a node, {nodes} copies"
        kept, whole = counts.total * state.kept // per_node, gathered
        within = accumulation * counts.total * (2 * state.compute + state.gradient) * (per_node - 1) // per_node
        across = 2 * counts.total * state.gradient // per_node * (nodes - 1) // nodes
        moved, seconds = within + across, within / inside + across / between
    return Sharding(
        name=kind,
        what=what,
        state_bytes=kept,
        gathered_bytes=whole,
        activation_bytes=cost.activation_bytes(model, micro_tokens),
        checkpointed_bytes=cost.activation_bytes(model, micro_tokens, checkpointing=True),
        communication_bytes=moved,
        communication_seconds=seconds,
        memory_bytes=gpu.memory_bytes,
    )


def _choose(shardings: list[Sharding], step_seconds: float) -> tuple[str | None, str]:
    """What fits without checkpointing first, then the least communication left over compute, then the least memory."""
    fitting = [sharding for sharding in shardings if sharding.fits != "no"]
    if not fitting:
        least = min(shardings, key=lambda sharding: sharding.total_checkpointed_bytes)
        return None, (
            f"nothing fits: {least.name} with checkpointing needs {least.total_checkpointed_bytes / 1e9:.1f} GB of "
            f"{least.memory_bytes / 1e9:.1f} GB; use more GPUs, fewer rows or a shorter context"
        )
    best = min(
        fitting,
        key=lambda sharding: (
            sharding.fits != "yes",
            max(0.0, sharding.communication_seconds - step_seconds),
            sharding.total_bytes,
        ),
    )
    checkpointing = "without" if best.fits == "yes" else "with"
    if best.communication_bytes == 0:
        return best.name, f"one GPU {checkpointing} activation checkpointing"
    share = best.communication_seconds / step_seconds
    hidden = "can hide behind compute" if share < 1 else "cannot hide behind compute: raise the batch"
    return best.name, (
        f"{best.name} {checkpointing} activation checkpointing; communication is {share:.0%} of a step's compute "
        f"and {hidden}"
    )
