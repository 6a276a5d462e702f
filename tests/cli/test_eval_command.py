"""`mify eval`: from a model's folder to a table, results and records; a user's mistakes end with code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mify.cli.app import app
from mify.config import ModelConfig
from mify.curation.documents import Document, write_documents
from mify.eval.sandbox import sandbox_kind
from mify.export.hf import export_hf
from mify.model import Model
from mify.tokenizer import train_tokenizer

SOURCE = "def area(width, height):\n    return width * height\n\n\nprint(area(2, 3))\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, and held-out and training documents."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("eval")
    tokenizer = train_tokenizer([SOURCE], 400)
    config = ModelConfig(
        name="t", num_layers=1, hidden_size=32, num_query_heads=2, num_kv_heads=1, head_dim=16, ffn_size=32,
        vocab_size=tokenizer.vocab_size, context=64, rope_theta=10000.0, rms_norm_eps=1e-5, tie_embeddings=True,
    )  # fmt: skip
    model = Model(config, seed=0)
    model.tokenizer = tokenizer
    export_hf(model, folder / "model")
    held_out = [Document.create(SOURCE, "code", "python", "MIT", "s", "r", "a.py")]
    write_documents(folder / "held_out.parquet", held_out)
    training = [Document.create(SOURCE * 3, "code", "python", "MIT", "s", "r", "b.py")]
    write_documents(folder / "training.parquet", training)
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_three_tasks_of_the_demo(folder: Path, tmp_path: Path) -> None:
    if not sandbox_kind().confined:
        pytest.skip(f"no sandbox works here: {sandbox_kind().reason}")
    arguments = (
        folder / "model", "--tasks", "humaneval,infilling,bpb", "--held-out", folder / "held_out.parquet", "--training",
        folder / "training.parquet", "--out", tmp_path / "out", "--limit", 3, "--max-new-tokens", 4, "--device", "cpu",
    )  # fmt: skip
    code, output = run(*arguments)
    assert code == 0, output
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())["results"]
    assert [result["task"] for result in results] == ["humaneval", "infilling", "bits_per_byte"]
    assert results[0]["statuses"] == {"failed": 3}
    assert results[0]["contamination"]["contaminated"] == 0
    assert results[1]["items"] == 2
    assert results[2]["all"]["xz_trained"] < results[2]["all"]["xz"]
    assert "pass@1" in output
    assert "exact match" in output
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    assert run(*arguments)[0] == 0
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before
    code, output = run(*arguments, "--seed", 1)
    assert code == 2
    assert "other settings (sampling)" in output.replace("\n", " ")
    assert run(*arguments, "--seed", 1, "--fresh")[0] == 0


def test_transformers_gives_the_same_completions(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    arguments = (
        "--tasks",
        "infilling",
        "--held-out",
        folder / "held_out.parquet",
        "--max-new-tokens",
        8,
        "--device",
        "cpu",
    )
    completions = []
    for engine in ("mify", "transformers"):
        out = tmp_path / engine
        code, output = run(folder / "model", *arguments, "--engine", engine, "--out", out)
        assert code == 0, output
        lines = (out / "infilling.completions.jsonl").read_text().splitlines()[1:]
        completions.append([json.loads(line)["completion"] for line in lines])
    assert completions[0] == completions[1]
    assert len(completions[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "humanval"], "'humanval' is unknown"),
        (["--tasks", ","], "no task is named"),
        (["--tasks", "bpb"], "needs held-out documents"),
        (["--tasks", "infilling", "--held-out", "/nothing.parquet"], "/nothing.parquet"),
        (["--k", "x"], "no list of positive"),
        (["--k", "5"], "at least that many samples"),
        (["--samples", "2"], "temperature 0"),
        (["--engine", "none"], "'none' is unknown"),
        (["--device", "tpu"], "'tpu' is unknown"),
        (["--tasks", "mbpp", "--data", "/nothing"], "mbpp.jsonl.gz is not in"),
        (["--max-new-tokens", "60"], "no room for 60"),
    ],
)
def test_mistakes(folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, output = run(folder / "model", *arguments, "--out", tmp_path / "out")
    assert code == 2, output
    assert message in " ".join(output.split())
    assert "Traceback" not in output


def test_the_list_of_tasks() -> None:
    code, output = run("--list")
    assert code == 0
    for name in ("humaneval", "humanevalplus", "mbpp", "cruxeval-input", "infilling", "bpb"):
        assert f"\n{name} " in f"\n{output}"
