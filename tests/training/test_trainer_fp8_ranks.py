"""FP8 on two processes: ranks share the largest values, so scales and losses are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_trainer_ranks import losses, quiet, run_ranks, weights
from toy import PoisonedStream, toy_config

from mify.training import run_state
from mify.training.trainer import train

pytestmark = pytest.mark.slow

KEYS = (
    "--precision=fp8-fp32", "--fp8.backend=emulation", "--fp8.recipe=delayed", "--fp8.first_layers=0",
    "--fp8.last_layers=0", "--fp8.amax_history=4",
)  # fmt: skip


def test_two_ranks_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "open_stream", PoisonedStream)
    run_ranks(
        2, tmp_path, "--name=sharded", *KEYS, "+", "--name=replicated", "--parallel.shard=none", *KEYS,
        "+", "--name=recomputed", "--parallel.activation_checkpointing=full", *KEYS,
        "+", "--name=bf16", *KEYS, "--precision=fp8",
    )  # fmt: skip
    train(toy_config(tmp_path, "--name=alone", *KEYS), quiet)
    alone = losses(tmp_path / "alone")
    state = weights(tmp_path / "alone", tmp_path / "alone.pt")
    histories = [name for name in state if name.endswith("fp8_history")]
    assert len(histories) == 14
    for name in ("sharded", "replicated", "recomputed"):
        # Not the same bits: the first step has no history, so each rank scales by its own part of the batch.
        assert losses(tmp_path / name) == pytest.approx(alone, rel=0.01)
        found = weights(tmp_path / name, tmp_path / f"{name}.pt")
        for history in histories:
            torch.testing.assert_close(found[history], state[history], rtol=0.35, atol=1e-6)
    assert losses(tmp_path / "sharded") == losses(tmp_path / "recomputed")
    assert losses(tmp_path / "bf16") == pytest.approx(alone, rel=0.05)

    # What two ranks saved, one goes on with.
    resumed = train(toy_config(tmp_path, "--name=sharded", *KEYS, "--steps=14"), quiet)
    assert resumed.step == 14
