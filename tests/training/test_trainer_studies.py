"""Studies from end to end at toy size: arms are trained once and compared, plans go by the ladder's curve."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from toy import on_ranks
from typer.testing import CliRunner

from mify.cli.app import app
from mify.curation.documents import Document, write_documents
from mify.data.shards import write_shards
from mify.errors import MifyError
from mify.files import read_json
from mify.tokenizer import train_tokenizer
from mify.training.ablate import fim_study, mix_study, run_study
from mify.training.evaluate import HeldOut
from mify.training.metrics import read_metrics
from mify.training.scaling import Curve, Fit, Point, Rung, forecast, parse_budgets, parse_rungs, read_fit, run_ladder

OVERRIDES = (
    "--data.context=64", "--data.rows_per_step=4", "--model.vocab_size=400", "--model.num_layers=1",
    "--model.hidden_size=32", "--model.ffn_size=48", "--parallel.threads=1", "--schedule.warmup_steps=1",
)  # fmt: skip
SHORT = ("--steps=4", "--schedule.decay_steps=1", "--checkpoint.every_steps=4")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    texts = [f"def f{i}(a, b):\n    total = a * {i} + b\n    return total\n" * (1 + i % 5) for i in range(90)]
    tokenizer = train_tokenizer(texts, 400)
    for number, domain in enumerate(("code", "text", "math")):
        part = [Document.create(t, domain, "Python", "MIT", "s", "r", str(i)) for i, t in enumerate(texts)][number::3]
        write_shards(part, tokenizer, folder / domain)
    return folder


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    text = "def g(a, b):\n    total = a * 91 + b\n    return total\n"
    documents = [Document.create(text * (i + 1), "code", "Python", "MIT", "s", "r", f"h{i}") for i in range(4)]
    return HeldOut(documents, max_bytes_per_domain=10_000, infilling=3)


def test_a_study_trains_each_arm_once_and_compares_pairs(tokens: Path, held_out: HeldOut, tmp_path: Path) -> None:
    def run() -> list[str]:
        said: list[str] = []
        study = mix_study(tokens)
        result = run_study(study, held_out, tmp_path, seeds=(1, 2), overrides=(*OVERRIDES, *SHORT), say=said.append)
        assert {(d.metric, d.variant) for d in result.differences} == {
            (metric, variant) for metric in ("code", "middle") for variant in ("92.7:4.9:2.4", "code only")
        }
        assert all(len(d.by_seed) == 2 and d.low <= d.mean <= d.high for d in result.differences)
        assert set(result.exact_match) == {"78:12:10", "92.7:4.9:2.4", "code only"}
        return said

    assert sum("step 4/4" in line for line in run()) == 6
    first = (tmp_path / "ablation.json").read_bytes()
    assert run() == []
    assert (tmp_path / "ablation.json").read_bytes() == first
    ledger = read_json(tmp_path / "78-12-10-seed-1" / "checkpoints" / "step-00000004" / "state.json")["ledger"]
    assert all(ledger[domain]["tokens"] > 0 for domain in ("code", "text", "math"))


@pytest.mark.slow
def test_a_study_on_two_ranks_finds_what_one_finds(tokens: Path, held_out: HeldOut, tmp_path: Path) -> None:
    """The command under torchrun: one rank speaks and writes, all train."""
    write_documents(tmp_path / "data" / "corpus" / "held_out.parquet", held_out.documents["code"])
    (tmp_path / "data" / "tokens").symlink_to(tokens)
    options = ["--data", str(tmp_path / "data"), "--seeds", "1", *OVERRIDES, *SHORT]
    shown = CliRunner().invoke(app, ["ablate", "mix", "--out", str(tmp_path / "one"), *options])
    assert shown.exit_code == 0, shown.output
    on_ranks(2, ["-m", "mify", "ablate", "mix", "--out", str(tmp_path / "two"), *options])
    one, two = (read_json(tmp_path / name / "ablation.json") for name in ("one", "two"))
    assert one["differences"]
    for first, second in zip(one.pop("differences"), two.pop("differences"), strict=True):
        assert second["mean"] == pytest.approx(first["mean"], abs=1e-6)
    assert one == two


def test_arms_of_one_seed_begin_alike(tokens: Path, held_out: HeldOut, tmp_path: Path) -> None:
    """Equal weights and, where the first step sees no permuted document in either, equal first losses."""
    study = fim_study(tokens, rates=(0.0, 1e-9))
    run_study(study, held_out, tmp_path, seeds=(1,), overrides=(*OVERRIDES, *SHORT), say=lambda message: None)
    zero, almost = (read_metrics(path) for path in sorted(tmp_path.glob("*/metrics.jsonl")))
    assert [r["loss"] for r in zero if "loss" in r] == [r["loss"] for r in almost if "loss" in r]


def test_a_ladder_gives_a_curve_that_plans_go_by(tokens: Path, held_out: HeldOut, tmp_path: Path) -> None:
    rungs = (Rung(1, 16, 32), Rung(1, 48, 96))
    found = run_ladder(
        tokens, held_out, tmp_path, rungs=rungs, budgets=(3, 6, 9), overrides=OVERRIDES, say=lambda message: None
    )
    assert len({point.parameters for point in found.points}) == 2
    assert len(found.points) == 6
    again = read_fit(tmp_path / "scale.json")
    assert (again.curve, again.points, again.resampled) == (found.curve, found.points, found.resampled)
    arguments = ["plan", "mify-125m", "--tokens", "2B", "--curve", str(tmp_path / "scale.json")]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    assert "By the fitted scaling curve" in shown.output
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)["forecast"]
    assert told["bits_per_byte"] == pytest.approx(found.curve(told["parameters"], 2_000_000_000))
    with pytest.raises(MifyError, match=r"absent\.json does not exist"):
        read_fit(tmp_path / "absent.json")
    with pytest.raises(MifyError, match="no mify-scaling-curve of version 2"):
        read_fit(next(tmp_path.rglob("config.json")))


def test_a_forecast_is_the_curves_own_arithmetic() -> None:
    curves = [Curve(0.5, 20.0, 0.3, 50.0, beta) for beta in (0.29, 0.3, 0.31)]
    found = Fit(curves[1], (Point("p", 1_000_000, 20_000_000, 1.9),), 0.01, tuple(curves))
    told = forecast(found, 10_000_000, 100_000_000)
    assert told.bits_per_byte == curves[1](1e7, 1e8)
    assert told.interval[0] < told.bits_per_byte < told.interval[1]
    assert told.extrapolation == pytest.approx(50.0)
    assert told.optimum is not None
    assert told.optimum[0] * told.optimum[1] == pytest.approx(1e15)
    # Least along the line of equal compute.
    assert all(curves[1](told.optimum[0] * by, told.optimum[1] / by) > told.optimum_bits_per_byte for by in (0.8, 1.25))
    undetermined = Fit(Curve(0.5, 1.0, 0.05, 50.0, 0.3), found.points, 0.01, ())  # an end of the grid
    assert forecast(undetermined, 10, 10).optimum is None
    flat = Fit(Curve(0.5, 0.0, 0.3, 50.0, 0.3), found.points, 0.01, ())
    assert forecast(flat, 10, 10).optimum is None
    assert math.isnan(forecast(flat, 10, 10).optimum_bits_per_byte)


def test_sizes_and_budgets_are_read_from_text() -> None:
    assert parse_rungs("12x768x2048, 1x2x3") == (Rung(12, 768, 2048), Rung(1, 2, 3))
    assert len(parse_rungs("")) == 4
    assert parse_budgets("10,20") == (10, 20)
    assert parse_budgets(" ") == (60, 120, 240)
    for text in ("12x768", "axbxc", "0x1x1"):
        with pytest.raises(MifyError, match="no size of a ladder"):
            parse_rungs(text)
    with pytest.raises(MifyError, match="names no steps"):
        parse_budgets("10,0")
