"""Exactness cases of `mify bench train`: a resumed run, and runs of several ranks, against one that is neither."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.training.config import TrainConfig

MakeConfig = Callable[..., "TrainConfig"]
KINDS = {"sharded": (), "fixed-order": ("--parallel.fixed_order=true",)}
"""FSDP2, whose sums lie in another order; and gradients reduced in one order over virtual shards."""
_RANK = (
    "import json, sys; from mify.training.config import TrainConfig; from mify.training.trainer import train;"
    "train(TrainConfig.from_dict(json.loads(sys.argv[1])), lambda *a: None)"
)


def quiet(step: int, steps: int, record: dict[str, Any]) -> None:
    """No progress."""


def resumed_values_that_differ(config: MakeConfig, name: str, steps: int) -> int:
    """Values of the last checkpoint and lines of metrics that differ between a run that was cut and a whole one."""
    from mify.training.metrics import read_metrics, without_times
    from mify.training.trainer import train

    overrides = (f"--steps={steps}", f"--checkpoint.every_steps={steps // 2}", "--data.rows_per_step=2")
    whole = train(config(f"{name}-whole", *overrides), quiet)
    resumed = config(f"{name}-resumed", *overrides)
    again = train(resumed, quiet)
    shutil.rmtree(again.checkpoint)  # what a kill before the last step leaves
    again = train(resumed, quiet)
    one, two = (without_times(read_metrics(result.folder / "metrics.jsonl")) for result in (whole, again))
    lines = abs(len(one) - len(two)) + sum(a != b for a, b in zip(one, two, strict=False))
    return lines + _values_that_differ(whole.checkpoint, again.checkpoint)


def _values_that_differ(one: Path, two: Path) -> int:
    """How many tensor elements of two checkpoints differ in any bit."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    loaded = []
    with tempfile.TemporaryDirectory() as folder:
        for path in (one, two):
            dcp_to_torch_save(path / "dcp", Path(folder) / "all.pt")
            loaded.append(torch.load(Path(folder) / "all.pt"))
    first, second = loaded
    if first.keys() != second.keys():
        return len(first.keys() ^ second.keys())
    return sum(int((_bits(first[key]) != _bits(second[key])).sum()) for key in first)


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().reshape(-1).view(torch.uint8)


def batches_that_differ(config: TrainConfig, sizes: Sequence[int], steps: int) -> int:
    """Global batches, over `sizes` ranks, that are not those of one rank: tokens, labels and positions compared."""
    from mify.training.data import open_stream
    from mify.training.parallel import World

    def batches(rank: int, size: int) -> list[torch.Tensor]:
        stream = open_stream(config, World(rank, size, size, torch.device("cpu")))
        return [torch.stack([b.tokens, b.labels, b.positions]) for b in islice(stream, steps)]

    alone, different = batches(0, 1), 0
    for size in sizes:
        parts = zip(*(batches(rank, size) for rank in range(size)), strict=True)
        different += sum(
            not torch.equal(whole, torch.cat(part, dim=1)) for whole, part in zip(alone, parts, strict=True)
        )
    return different


def loss_difference(config: MakeConfig, name: str, kind: str, sizes: Sequence[int], steps: int) -> dict[int, float]:
    """{ranks: the largest relative difference of a step's loss from that of one rank}, a small model in fp32."""
    from mify.training.metrics import read_metrics
    from mify.training.trainer import train

    small = (
        f"--steps={steps}", "--data.rows_per_step=4", "--data.micro_rows=1", "--model.num_layers=2",
        "--model.hidden_size=64", "--model.ffn_size=128", "--data.context=128", "--model.vocab_size=4096",
        "--parallel.threads=1", *KINDS[kind],
    )  # fmt: skip

    def losses(folder: Path) -> list[float]:
        return [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if "loss" in record]

    alone = losses(train(config(f"{name}-1", *small), quiet).folder)
    worst = {}
    for size in sizes:
        many = config(f"{name}-{size}", *small)
        _on_ranks(many, size)
        pairs = zip(alone, losses(many.run_folder), strict=True)
        worst[size] = max(abs(a - b) / a for a, b in pairs)
    return worst


def _on_ranks(config: TrainConfig, size: int) -> None:
    """Trains on `size` processes over gloo, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank in range(size):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-c", _RANK, json.dumps(config.to_dict())]
        processes.append(subprocess.Popen(command, env=environment))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise MifyError("a rank of the bench failed", "see its message above")
