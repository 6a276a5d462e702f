"""Two processes on gloo: the same losses as one, other world sizes on resume, and one verdict on all ranks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from toy import PoisonedStream, poison_losses, toy_config

from mify.model import Model
from mify.training import run_state
from mify.training.metrics import read_metrics, without_times
from mify.training.trainer import train

TOY = Path(__file__).parent / "toy.py"


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "open_stream", PoisonedStream)
    monkeypatch.setattr(Model, "loss", Model.loss)  # restores what poison_losses replaces
    poison_losses()


def quiet(step: int, steps: int, record: dict) -> None:
    """No progress."""


def run_ranks(count: int, folder: Path, *overrides: str, **environment: str) -> None:
    """The toy run on `count` processes, as torchrun would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(count):
        env = os.environ | {
            "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, str(TOY), str(folder), *overrides]
        processes.append(subprocess.Popen(command, env=env | environment))
    assert [process.wait(timeout=240) for process in processes] == [0] * count


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record]


def weights(run: Path, scratch: Path) -> dict[str, torch.Tensor]:
    dcp_to_torch_save(run / (run / "latest").read_text().strip() / "dcp", scratch)
    tensors = torch.load(scratch)
    return {name: value for name, value in tensors.items() if not name.startswith("rng.")}


def assert_close(first: Path, second: Path, scratch: Path) -> None:
    a, b = losses(first), losses(second)
    assert len(a) == len(b) == 12
    assert max(abs(x - y) / x for x, y in zip(a, b, strict=True)) <= 1e-6
    one, two = weights(first, scratch / "one.pt"), weights(second, scratch / "two.pt")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_two_sharded_ranks_train_as_one_process_and_reshard(tmp_path: Path) -> None:
    train(toy_config(tmp_path / "one"), quiet)
    run_ranks(2, tmp_path / "two")
    assert_close(tmp_path / "one" / "toy", tmp_path / "two" / "toy", tmp_path)

    # Two ranks until step 8, one after it: the shards are put together, and the stream goes on.
    shutil.rmtree(tmp_path / "two" / "toy" / "checkpoints" / "step-00000012")
    train(toy_config(tmp_path / "two"), quiet)
    assert_close(tmp_path / "one" / "toy", tmp_path / "two" / "toy", tmp_path)


def test_more_micro_batches_train_as_one(tmp_path: Path) -> None:
    train(toy_config(tmp_path / "one"), quiet)
    train(toy_config(tmp_path / "four", "--data.micro_rows=2"), quiet)
    assert_close(tmp_path / "one" / "toy", tmp_path / "four" / "toy", tmp_path)


def test_a_nan_on_one_rank_is_skipped_by_all(tmp_path: Path) -> None:
    run_ranks(2, tmp_path / "two", TOY_POISON="5")
    records = read_metrics(tmp_path / "two" / "toy" / "metrics.jsonl")
    (skipped,) = [record for record in records if record.get("event") == "skipped"]
    assert skipped["batch"] == 5
    assert skipped["step"] == 6
    assert [record["step"] for record in records if record.get("loss", 0) is None] == [6]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "two" / "toy", tmp_path / "w.pt").values())
    os.environ["TOY_POISON"] = "5"
    try:
        train(toy_config(tmp_path / "one"), quiet)
    finally:
        del os.environ["TOY_POISON"]
    ours = [x for x in losses(tmp_path / "one" / "toy") if x is not None]
    theirs = [x for x in losses(tmp_path / "two" / "toy") if x is not None]
    assert max(abs(x - y) / x for x, y in zip(ours, theirs, strict=True)) <= 1e-6


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_in_fixed_order_any_world_size_computes_the_same_bits(tmp_path: Path, count: int) -> None:
    fixed = "--parallel.fixed_order=true"
    train(toy_config(tmp_path / "one", fixed), quiet)
    run_ranks(count, tmp_path / "many", fixed)
    one, many = tmp_path / "one" / "toy", tmp_path / "many" / "toy"
    assert without_times(read_metrics(one / "metrics.jsonl")) == without_times(read_metrics(many / "metrics.jsonl"))
    a, b = weights(one, tmp_path / "a.pt"), weights(many, tmp_path / "b.pt")
    assert all(torch.equal(a[name], b[name]) for name in a)
