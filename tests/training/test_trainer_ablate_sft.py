"""The ladder of conversations: nested sizes, measured on what none of them saw, once each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mify.cli.app import app
from mify.config import model_config
from mify.errors import MifyError
from mify.export.hf import export_hf
from mify.model import Model
from mify.tokenizer import train_tokenizer
from mify.training.ablate_sft import Step, _split, conclusion, run_sft_scale

LINES = [
    json.dumps({"messages": [
        {"role": "user", "content": f"add {index} and {index * 7 % 11}"},
        {"role": "assistant", "content": f"return {index} + {index * 7 % 11}"},
    ]})
    for index in range(72)
]  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["user assistant add and return def add(a, b): return a + b\n", *LINES[:5]], 420)
    shape = {"num_layers": 1, "hidden_size": 32, "ffn_size": 48, "vocab_size": 448, "context": 128}
    made = Model(model_config("mify-tiny", **shape), seed=1)
    made.tokenizer = tokenizer
    return export_hf(made, tmp_path / "base")


def test_the_command_trains_each_size_once_and_says_what_helped(tmp_path: Path, model: Path) -> None:
    (tmp_path / "chat.jsonl").write_text("\n".join(LINES))
    out = tmp_path / "out"
    arguments = [
        "ablate", "sft-scale", "--conversations", str(tmp_path / "chat.jsonl"), "--model", str(model),
        "--out", str(out), "--sizes", "8,48", "--seeds", "2", "--held-out", "12", "--epochs", "3", "--data.context=128",
        "--optimizer.learning_rate=1e-2", "--parallel.threads=1",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads((out / "sft-scale.json").read_text())
    assert [row["size"] for row in found["rows"]] == [0, 8, 48]
    losses = [row["loss"] for row in found["rows"]]
    assert losses[0] > losses[1] > losses[2]
    assert found["rows"][2]["gained"]["verdict"] == "better"
    assert found["rows"][2]["gained"]["high"] < 0
    assert found["rows"][2]["steps"] > found["rows"][1]["steps"] >= 1
    assert (out / "sft-scale.png").stat().st_size > 1000
    assert "the last step, too, helped" in found["conclusion"]
    assert "better" in done.output
    # What was held out was not trained on, and a smaller size's conversations are among a larger one's.
    trained = (out / "training.jsonl").read_text().splitlines()
    assert len(trained) == 60
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("held_out.json")}
    assert len(stamps) == 4
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in out.rglob("held_out.json")} == stamps
    assert json.loads((out / "sft-scale.json").read_text()) == found


def test_the_split_knows_no_order_and_no_copies(tmp_path: Path) -> None:
    for name, lines in (("one", LINES), ("two", [*reversed(LINES), LINES[3], "{"])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    first = _split(tmp_path / "one.jsonl", tmp_path / "a", 10)
    second = _split(tmp_path / "two.jsonl", tmp_path / "b", 10)
    assert first == second
    assert (tmp_path / "a" / "training.jsonl").read_bytes() == (tmp_path / "b" / "training.jsonl").read_bytes()
    held = {conversation.messages[0].content for conversation in first[1]}
    assert not any(text in (tmp_path / "a" / "training.jsonl").read_text() for text in (f'"{t}"' for t in held))


def test_a_ladder_that_is_none_is_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "chat.jsonl").write_text("\n".join(LINES))

    def run(conversations: Path = tmp_path / "chat.jsonl", **options: object) -> None:
        run_sft_scale(conversations, model, tmp_path / "x", held_out=12, say=print, **options)  # type: ignore[arg-type]

    for sizes in ([8, 4], [0, 4], [61]):
        with pytest.raises(MifyError, match="no ladder"):
            run(sizes=sizes)
    with pytest.raises(MifyError, match="at least one seed"):
        run(seeds=())
    with pytest.raises(MifyError, match=r"holds no \.jsonl"):
        run(tmp_path / "none")
    with pytest.raises(MifyError, match="give more"):
        (tmp_path / "few.jsonl").write_text("\n".join(LINES[:5]))
        run(tmp_path / "few.jsonl")
    assert conclusion([Step(0, 0, 2.0, None)]) == "No size can be told from the one before it."
