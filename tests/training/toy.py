"""A tiny run: a token stream that is a pure function of (seed, step), and a configuration around it.

As a script it trains in a process of its own, which tests kill: `python toy.py FOLDER [--key=value …]`; after a `+`
comes another run. `poison=5,6` plants NaN in the last rank's batches 5 and 6.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mify.data.batch import PackedBatch
from mify.model import Model
from mify.training import run_state
from mify.training.config import TrainConfig, load_recipe
from mify.training.parallel import World

CONTEXT, ROWS, VOCABULARY = 32, 8, 64
RECIPE = Path(__file__).parent / "toy.toml"


class ToyStream:
    """`rows_per_step` rows of two documents each; ranks take contiguous rows. Labels are learnable: a fixed cycle."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.seed, self.rank, self.size = config.seed, world.rank, world.size
        self.rows, self.context = config.data.rows_per_step, config.data.context
        self.position = 0

    def batch(self, index: int) -> PackedBatch:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + index)
        rows, context = self.rows, self.context
        start = torch.randint(0, VOCABULARY, (rows, 1), generator=generator)
        stride = torch.randint(1, 4, (rows, 1), generator=generator)
        tokens = (start + stride * torch.arange(context)) % VOCABULARY
        cuts = torch.randint(1, context, (rows,), generator=generator)
        positions = torch.arange(context).repeat(rows, 1)
        positions = torch.where(positions >= cuts[:, None], positions - cuts[:, None], positions)
        labels = torch.roll(tokens, -1, dims=1)
        labels[:, -1] = -100
        labels[torch.arange(rows), cuts - 1] = -100
        # Rows carry unequal numbers of labels, so that a mean over rows or ranks would not be the mean over tokens.
        labels[: rows // 2, : context // 2] = -100
        mine = slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)
        here = tokens[mine].shape[0]
        bounds = torch.stack([torch.arange(here) * context, torch.arange(here) * context + cuts[mine]], 1).reshape(-1)
        cu_seqlens = torch.full((4 * here + 1,), here * context, dtype=torch.int32)
        cu_seqlens[: 2 * here] = bounds.to(torch.int32)
        parts = (tokens[mine], labels[mine], positions[mine])
        return PackedBatch(*(part.reshape(-1) for part in parts), cu_seqlens, context)

    def __iter__(self) -> Any:
        while True:
            self.position += 1
            yield self.batch(self.position - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def documents_after(self, state: dict[str, Any]) -> list[list[str]]:
        return [[f"batch-{state['position']}-row-{row}"] for row in range(self.rows)]

    def ledger(self) -> dict[str, Any]:
        return {"toy": {"tokens": self.position * self.rows * self.context, "epochs": 0.0}}


def toy_config(folder: Path, *overrides: str) -> TrainConfig:
    return load_recipe(RECIPE, [f"--folder={folder}", *overrides])


def use_toy_stream(make: Any = ToyStream) -> None:
    run_state.open_stream = make


def on_ranks(count: int, command: list[str], *, status: int = 0) -> None:
    """`python *command` on `count` processes, as torchrun would start them; all end with `status`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(count):
        env = os.environ | {
            "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        processes.append(subprocess.Popen([sys.executable, *command], env=env))
    assert [process.wait(timeout=900) for process in processes] == [status] * count


class PoisonedStream(ToyStream):
    """Marks the batches that TOY_POISON lists (`5,6`) on the last rank alone; `poison_losses` makes their loss NaN."""

    def batch(self, index: int) -> PackedBatch:
        batch = super().batch(index)
        poisoned = {int(item) for item in os.environ.get("TOY_POISON", "").split(",") if item}
        if index in poisoned and self.rank == self.size - 1:
            return dataclasses.replace(batch, sources=("poison",))
        return batch


def poison_losses() -> Any:
    """Makes the loss of a marked batch NaN, gradients too; returns the function it replaced."""
    original = Model.loss

    def loss(self: Model, batch: PackedBatch, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        total, count = original(self, batch, **options)
        return (total * float("nan") if batch.sources == ("poison",) else total), count

    Model.loss = loss
    return original


def main(folder: Path, arguments: list[str]) -> None:
    from mify.training.trainer import train

    use_toy_stream(PoisonedStream)
    poison_losses()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo")
    runs: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "+":
            runs.append([])
        else:
            runs[-1].append(argument)
    for overrides in runs:
        poison = [o.removeprefix("poison=") for o in overrides if o.startswith("poison=")]
        os.environ["TOY_POISON"] = ",".join(poison)
        config = toy_config(folder, *(o for o in overrides if not o.startswith("poison=")))
        train(config, progress=lambda step, steps, record: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
