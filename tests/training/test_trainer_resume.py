"""Killed, stopped or branched, a run ends where an uninterrupted one ends: the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from toy import PoisonedStream, toy_config

from mify.errors import MifyError
from mify.training import run_state
from mify.training.config import TrainConfig
from mify.training.metrics import read_metrics, without_times
from mify.training.trainer import train

TOY = Path(__file__).parent / "toy.py"


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "open_stream", PoisonedStream)


def quiet(step: int, steps: int, record: dict) -> None:
    """No progress."""


def tensors(checkpoint: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, read by torch's own converter."""
    file = folder / f"{checkpoint.parent.parent.name}-{checkpoint.name}.pt"
    dcp_to_torch_save(checkpoint / "dcp", file)
    return torch.load(file)


def assert_equal_ends(first: Path, second: Path, scratch: Path) -> None:
    """Same metrics (times aside) and, bit for bit, the same weights and moments at the newest checkpoint."""
    assert without_times(read_metrics(first / "metrics.jsonl")) == without_times(read_metrics(second / "metrics.jsonl"))
    assert (first / "latest").read_text() == (second / "latest").read_text()
    name = (first / "latest").read_text().strip()
    (scratch / "a").mkdir(exist_ok=True)
    (scratch / "b").mkdir(exist_ok=True)
    a, b = tensors(first / name, scratch / "a"), tensors(second / name, scratch / "b")
    assert a.keys() == b.keys()
    assert len(a) > 20
    for key in a:
        assert torch.equal(a[key], b[key]), key


def start(folder: Path, *overrides: str, **environment: str) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"} | environment
    return subprocess.Popen([sys.executable, str(TOY), str(folder), *overrides], env=env)


def wait_for_lines(process: subprocess.Popen, path: Path, lines: int) -> None:
    """Returns when the run has written so many lines, or is over; one that stands still prints its stacks and fails."""
    deadline = time.monotonic() + 900  # a hang, not a busy machine
    while time.monotonic() < deadline:
        if path.is_file() and path.read_bytes().count(b"\n") >= lines:
            return
        if process.poll() is not None:
            assert process.returncode == 0
            return
        time.sleep(0.002)
    process.send_signal(signal.SIGABRT)
    process.wait()
    raise AssertionError(f"{path} never reached {lines} lines")


def kill_and_finish(folder: Path, kills: list[int], *overrides: str) -> None:
    """Starts the run, SIGKILLs it after so many lines of metrics (more each time), then lets it end."""
    for lines in kills:
        process = start(folder, *overrides)
        wait_for_lines(process, folder / "toy" / "metrics.jsonl", lines)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start(folder, *overrides).wait() == 0


def test_a_killed_run_ends_where_an_uninterrupted_one_ends(tmp_path: Path) -> None:
    steps = "--steps=60"
    train(toy_config(tmp_path / "whole", steps), quiet)
    kill_and_finish(tmp_path / "killed", [6, 21, 45], steps)
    assert_equal_ends(tmp_path / "whole" / "toy", tmp_path / "killed" / "toy", tmp_path)
    assert not list((tmp_path / "killed" / "toy" / "checkpoints").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_fifty_kills_at_random_moments(tmp_path: Path, asynchronous: str) -> None:
    overrides = ("--steps=400", "--checkpoint.every_steps=3", f"--checkpoint.asynchronous={asynchronous}")
    train(toy_config(tmp_path / "whole", *overrides), quiet)
    rng, folder, kills = random.Random(7), tmp_path / "killed", 0
    while kills < 50:
        process = start(folder, *overrides)
        metrics = folder / "toy" / "metrics.jsonl"
        lines = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
        wait_for_lines(process, metrics, min(lines + 1, 399))
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills >= 40
    assert start(folder, *overrides).wait() == 0
    assert_equal_ends(tmp_path / "whole" / "toy", folder / "toy", tmp_path)


def test_stopped_by_interrupt_it_saves_and_goes_on(tmp_path: Path) -> None:
    steps = "--steps=40"
    train(toy_config(tmp_path / "whole", steps), quiet)
    folder = tmp_path / "stopped"
    before = signal.getsignal(signal.SIGINT)

    def interrupt(step: int, total: int, record: dict) -> None:
        if step == 17:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(toy_config(folder, steps), interrupt)
    assert sorted(path.name for path in (folder / "toy" / "checkpoints").iterdir())[-1] in (
        "step-00000017",
        "step-00000018",
    )
    assert signal.getsignal(signal.SIGINT) is before
    train(toy_config(folder, steps), quiet)
    assert_equal_ends(tmp_path / "whole" / "toy", folder / "toy", tmp_path)


def test_a_finished_run_run_again_does_nothing(tmp_path: Path) -> None:
    train(toy_config(tmp_path), quiet)
    before = (tmp_path / "toy" / "metrics.jsonl").read_bytes()
    result = train(toy_config(tmp_path), quiet)
    assert result.step == 12
    assert (tmp_path / "toy" / "metrics.jsonl").read_bytes() == before


def test_asynchronous_checkpoints_hold_the_same_bits(tmp_path: Path) -> None:
    train(toy_config(tmp_path / "sync"), quiet)
    train(toy_config(tmp_path / "async", "--checkpoint.asynchronous=true"), quiet)
    assert_equal_ends(tmp_path / "sync" / "toy", tmp_path / "async" / "toy", tmp_path)


def test_a_decay_branch_goes_on_from_the_stable_phase(tmp_path: Path) -> None:
    keep = "--checkpoint.keep_last=9"
    train(toy_config(tmp_path, keep), quiet)
    trunk = tmp_path / "toy" / "checkpoints" / "step-00000008"
    branch = toy_config(tmp_path, "--name=branch", f"--init.state={trunk}")
    train(branch, quiet)
    # The branch's schedule is the trunk's own: so from step 8 on it must be the trunk.
    trunk_records = [r for r in without_times(read_metrics(tmp_path / "toy" / "metrics.jsonl")) if r["step"] > 8]
    assert without_times(read_metrics(tmp_path / "branch" / "metrics.jsonl")) == trunk_records


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    train(toy_config(tmp_path, "--steps=6"), quiet)
    with pytest.raises(MifyError, match=r"optimizer\.learning_rate changed"):
        train(toy_config(tmp_path, "--steps=6", "--optimizer.learning_rate=0.5"), quiet)
    longer: TrainConfig = toy_config(tmp_path, "--steps=8", "--checkpoint.every_steps=2")
    assert train(longer, quiet).step == 8


def test_a_run_of_an_earlier_mify_goes_on_where_a_key_is_new(tmp_path: Path) -> None:
    train(toy_config(tmp_path, "--steps=6"), quiet)
    path = tmp_path / "toy" / "config.json"
    saved = json.loads(path.read_text())
    del saved["config"]["data"]["skip"], saved["config"]["optimizer"]["z_loss"]
    path.write_text(json.dumps(saved))
    assert train(toy_config(tmp_path, "--steps=8"), quiet).step == 8


def test_a_run_on_real_shards_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mify.curation.documents import Document, write_documents
    from mify.data.shards import write_shards
    from mify.tokenizer import train_tokenizer
    from mify.training import data

    monkeypatch.setattr(run_state, "open_stream", data.open_stream)
    texts = [f"def f{i}(a, b):\n    total = a * {i} + b\n    return total\n" * (1 + i % 5) for i in range(120)]
    documents = [Document.create(t, "code", "Python", "MIT", "s", "r", str(i)) for i, t in enumerate(texts)]
    tokenizer = train_tokenizer(texts, 400)
    write_shards(documents[6:], tokenizer, tmp_path / "tokens")
    write_documents(tmp_path / "held_out.parquet", documents[:6])
    overrides = (
        f"--data.sources.code.path={tmp_path / 'tokens'}", "--data.sources.code.weight=1", "--model.vocab_size=none",
        "--model.preset=mify-tiny", "--data.context=64", f"--evaluation.held_out={tmp_path / 'held_out.parquet'}",
        "--evaluation.every_steps=4", "--data.rows_per_step=4",
    )  # fmt: skip
    whole = train(toy_config(tmp_path / "whole", *overrides), quiet)
    assert whole.ledger["code"]["tokens"] > 0
    assert set(whole.held_out_bits_per_byte) == {"code"}

    class Killed(BaseException):
        """Stands for a SIGKILL: nothing in the trainer catches it."""

    def die(step: int, steps: int, record: dict) -> None:
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        train(toy_config(tmp_path / "cut", *overrides), die)
    resumed = train(toy_config(tmp_path / "cut", *overrides), quiet)
    assert resumed.ledger == whole.ledger
    assert (resumed.checkpoint / "tokenizer.json").read_bytes() == (tmp_path / "tokens/tokenizer.json").read_bytes()
    assert_equal_ends(whole.folder, resumed.folder, tmp_path)
