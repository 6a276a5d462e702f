"""Damaged, torn, foreign and unwritable checkpoints; what is kept; rollbacks and spikes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import PoisonedStream, ToyStream, poison_losses, toy_config

import mify
from mify.errors import MifyError
from mify.model import Model
from mify.training import checkpoint, run_state, tensorboard
from mify.training.checkpoint import check, load_model
from mify.training.config import StabilitySection
from mify.training.metrics import MetricsLog, read_metrics, without_times
from mify.training.stability import Guard, Verdict
from mify.training.trainer import train


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "open_stream", PoisonedStream)
    monkeypatch.setattr(Model, "loss", Model.loss)  # restores what poison_losses replaces
    poison_losses()


class Listener:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.records: list[dict[str, Any]] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def __call__(self, step: int, steps: int, record: dict[str, Any]) -> None:
        self.records.append(record)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "toy" / "checkpoints").iterdir())


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_that_is_said(tmp_path: Path, damage: str) -> None:
    train(toy_config(tmp_path / "whole"), Listener())
    train(toy_config(tmp_path / "hurt"), Listener())
    newest = tmp_path / "hurt" / "toy" / "checkpoints" / "step-00000012"
    file = newest / "dcp" / "__0_0.distcp"
    if damage == "flip":
        flip_a_byte(file)
    elif damage == "truncate":
        os.truncate(file, file.stat().st_size // 2)
    elif damage == "remove":
        file.unlink()
    else:
        (newest / "manifest.json").write_text("{")
    listener = Listener()
    train(toy_config(tmp_path / "hurt"), listener)
    assert "step-00000012 is damaged and passed over" in listener.said[0]
    assert listener.said[1].endswith("at step 8")
    assert [record["step"] for record in listener.records] == [9, 10, 11, 12]
    check(newest)  # it was written anew
    whole, hurt = (without_times(read_metrics(tmp_path / name / "toy" / "metrics.jsonl")) for name in ("whole", "hurt"))
    assert whole == hurt


def test_where_every_checkpoint_is_damaged_the_run_refuses(tmp_path: Path) -> None:
    train(toy_config(tmp_path), Listener())
    for folder in (tmp_path / "toy" / "checkpoints").iterdir():
        flip_a_byte(folder / "dcp" / "__0_0.distcp")
    with pytest.raises(MifyError, match="no checkpoint in .* is whole"):
        train(toy_config(tmp_path), Listener())


def test_an_unknown_version_is_refused_by_name(tmp_path: Path) -> None:
    train(toy_config(tmp_path), Listener())
    newest = tmp_path / "toy" / "checkpoints" / "step-00000012"
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(MifyError, match=r"no mify-checkpoint of version 1 \(found \('mify-checkpoint', 2\)\)"):
        check(newest)


def test_keep_policy(tmp_path: Path) -> None:
    train(
        toy_config(
            tmp_path, "--checkpoint.every_steps=1", "--checkpoint.keep_last=2", "--checkpoint.keep_every_steps=5"
        ),
        Listener(),
    )
    assert checkpoints(tmp_path) == ["step-00000005", "step-00000010", "step-00000011", "step-00000012"]
    assert (tmp_path / "toy" / "latest").read_text() == "checkpoints/step-00000012\n"


def test_a_checkpoint_loads_as_a_model(tmp_path: Path) -> None:
    result = train(toy_config(tmp_path), Listener())
    model = mify.load(tmp_path / "toy")
    other = Model(model.config, seed=99)
    load_model(result.checkpoint, other)
    batch = ToyStream(toy_config(tmp_path), run_state.World(0, 1, 1, torch.device("cpu"))).batch(0)
    assert torch.equal(model.loss(batch)[0], other.loss(batch)[0])
    with pytest.raises(MifyError, match=r"model\.embed_tokens\.weight is of shape"):
        load_model(result.checkpoint, Model(type(model.config).from_dict(model.config.to_dict() | {"hidden_size": 64})))


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_full_disk_is_named_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: str
) -> None:
    train(toy_config(tmp_path, "--steps=8"), Listener())
    real = checkpoint.write_shards

    def full(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_shards", full)
    with pytest.raises(MifyError, match=r"the disk is full: the checkpoint .*step-00000012 could not be written"):
        train(toy_config(tmp_path, f"--checkpoint.asynchronous={asynchronous}"), Listener())
    assert checkpoints(tmp_path) == ["step-00000004", "step-00000008"]
    monkeypatch.undo()
    monkeypatch.setattr(run_state, "open_stream", PoisonedStream)
    assert train(toy_config(tmp_path), Listener()).step == 12
    assert (tmp_path / "toy" / "latest").read_text() == "checkpoints/step-00000012\n"


def test_a_disk_that_really_is_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small tmpfs needs root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        with pytest.raises(MifyError, match="the disk is full"):
            train(toy_config(small, "--checkpoint.keep_last=9"), Listener())
        good = checkpoints(small)
        assert good == ["step-00000004", "step-00000008"]
        for name in good:
            check(small / "toy" / "checkpoints" / name)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_bad_batches_in_a_row_roll_the_run_back_past_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_POISON", "5,6,7")
    listener = Listener()
    config = toy_config(tmp_path, "--steps=14")
    train(config, listener)
    events = [(record["event"], record["step"]) for record in listener.records if "event" in record]
    assert events == [("skipped", 6), ("skipped", 7), ("rolled back", 4)]
    (rolled,) = [record for record in listener.records if record.get("event") == "rolled back"]
    assert rolled["batches"] == [4, 7]
    state = json.loads((tmp_path / "toy" / "checkpoints" / "step-00000014" / "state.json").read_text())
    assert state["batch_index"] == 14 + 4
    assert state["rollbacks"] == 1
    # What was rolled back leaves no trace: it is the run that never saw batches 4 to 7.
    skipping = skipping_stream(range(4, 8))
    monkeypatch.setattr(run_state, "open_stream", skipping)
    reference = Listener()
    train(toy_config(tmp_path / "reference", "--steps=14"), reference)
    last = [record for record in listener.records if "loss" in record][-10:]
    assert [r["loss"] for r in last] == [r["loss"] for r in reference.records if r["step"] > 4]
    # And a resumed run repeats it, line by line.
    monkeypatch.setattr(run_state, "open_stream", PoisonedStream)
    before = without_times(read_metrics(tmp_path / "toy" / "metrics.jsonl"))
    for name in ("step-00000012", "step-00000014"):
        shutil.rmtree(tmp_path / "toy" / "checkpoints" / name)
    train(config, Listener())
    assert without_times(read_metrics(tmp_path / "toy" / "metrics.jsonl")) == before


def skipping_stream(passed_over: range) -> type[ToyStream]:
    class Skipping(ToyStream):
        def batch(self, index: int) -> Any:
            return super().batch(index if index < passed_over.start else index + len(passed_over))

    return Skipping


def test_numbers_that_stay_wrong_end_the_run_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_POISON", ",".join(map(str, range(5, 60))))
    with pytest.raises(MifyError, match="3 rollbacks did not help") as caught:
        train(toy_config(tmp_path), Listener())
    assert "optimizer.learning_rate" in caught.value.remedy
    monkeypatch.setenv("TOY_POISON", "0,1,2")
    with pytest.raises(MifyError, match="no checkpoint to go back to"):
        train(toy_config(tmp_path / "fresh"), Listener())


def test_the_guard_knows_a_spike_from_noise_and_gets_used_to_a_new_level() -> None:
    guard = Guard(StabilitySection(spike_window=16, spike_factor=6.0))
    for index in range(16):
        assert guard.judge(2.0 + 0.01 * (index % 4), 1.0) is Verdict.TAKE
        assert not guard.is_spike
    assert guard.judge(2.1, 1.0) is Verdict.TAKE
    assert not guard.is_spike
    assert guard.judge(5.0, 1.0) is Verdict.TAKE
    assert guard.is_spike
    for _ in range(16):
        guard.judge(5.0, 1.0)
    assert not guard.is_spike
    assert guard.judge(float("inf"), 1.0) is Verdict.SKIP
    assert guard.judge(2.0, float("nan")) is Verdict.SKIP
    copy = Guard(guard.config)
    copy.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert copy.judge(float("nan"), 1.0) is Verdict.ROLL_BACK


def test_lasting_spikes_roll_back_where_asked() -> None:
    guard = Guard(StabilitySection(spike_window=8, spike_rollback=True, max_skips=2))
    verdicts = [guard.judge(loss, 1.0) for loss in [2.0] * 8 + [9.0, 9.0]]
    assert verdicts == [Verdict.TAKE] * 9 + [Verdict.ROLL_BACK]


def test_metrics_are_cut_to_the_checkpoint_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]
    log = MetricsLog(path, 2)
    log.write({"step": 3, "time": {"x": 1}})
    log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "time": {"x": 1}}\n'
    assert log.lines == 3


def test_tensorboard_events_follow_the_format(tmp_path: Path) -> None:
    # The check value of CRC-32C (RFC 3720, appendix B.4, and every catalogue): of b"123456789".
    crc = 0xE3069283
    assert tensorboard.masked_crc32c(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    writer = tensorboard.EventWriter(tmp_path, 7)
    writer.write({"step": 8, "loss": 2.5, "event": "text", "time": {"eta_seconds": None, "step_seconds": 0.25}})
    writer.close()
    (file,) = tmp_path.iterdir()
    data, payloads = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == tensorboard.masked_crc32c(data[:8])
        payload = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == tensorboard.masked_crc32c(payload)
        payloads.append(payload)
        data = data[16 + length :]
    assert payloads[0].endswith(b"\x1a\x0dbrain.Event:2")
    assert payloads[1].endswith(b"\x10\x07" + b"\x3a\x02\x08\x01")
    assert b"\x10\x08" in payloads[2]
    assert b"\x0a\x04loss\x15" + struct.pack("<f", 2.5) in payloads[2]
    assert b"time/step_seconds\x15" + struct.pack("<f", 0.25) in payloads[2]
    assert b"event" not in payloads[2]
