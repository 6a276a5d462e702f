"""FP8 training against fp32 on the same data: mify-tiny on Python's own library, every recipe, emulated."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from mify.curation.documents import Document
from mify.data.shard_writer import write_shards
from mify.tokenizer import train_tokenizer
from mify.training.config import load_recipe
from mify.training.trainer import train

pytestmark = pytest.mark.slow
STEPS = 60


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:80]
    texts = [file.read_text(encoding="utf-8") for file in files]
    tokenizer = train_tokenizer(texts, 4096)
    documents = [
        Document.create(text, "code", "python", "PSF-2.0", "installed", "python", file.name)
        for text, file in zip(texts, files, strict=True)
    ]
    folder = tmp_path_factory.mktemp("tokens") / "code"
    write_shards(documents, tokenizer, folder)
    return folder


def mean_of_last_steps(tokens: Path, folder: Path, name: str, *keys: str) -> float:
    config = load_recipe(
        "demo",
        [
            f"--data.sources.code.path={tokens}", "--data.sources.code.weight=1", "--data.rows_per_step=2",
            f"--steps={STEPS}", "--schedule.warmup_steps=20", "--schedule.decay_steps=20", "--parallel.threads=1",
            # At the recipe's 3e-3 the first steps see spikes of the gradient, and runs that differ in rounding part.
            "--optimizer.learning_rate=1e-3",
            "--checkpoint.every_steps=1000", f"--folder={folder}", f"--name={name}", "--evaluation.held_out=none",
            "--logging.tensorboard=false", *keys,
        ],
    )  # fmt: skip
    losses: list[float] = []

    def note(step: int, steps: int, record: dict) -> None:
        if record.get("loss") is not None:
            losses.append(record["loss"])

    train(config, note)
    assert len(losses) == STEPS
    return sum(losses[-10:]) / 10


def test_the_loss_is_within_a_hundredth_of_fp32s(tokens: Path, tmp_path: Path) -> None:
    exact = mean_of_last_steps(tokens, tmp_path, "fp32")
    for recipe in ("block", "current", "delayed"):
        keys = ("--precision=fp8-fp32", f"--fp8.recipe={recipe}", "--fp8.first_layers=0", "--fp8.last_layers=0")
        assert mean_of_last_steps(tokens, tmp_path, recipe, *keys) == pytest.approx(exact, rel=0.01)
