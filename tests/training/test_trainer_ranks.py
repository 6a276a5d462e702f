"""Two processes on gloo: the same losses as one, other world sizes on resume, and one verdict on all ranks."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from toy import PoisonedStream, on_ranks, poison_losses, toy_config

from mify.curation.documents import Document, write_documents
from mify.data.shards import write_shards
from mify.loading import load
from mify.model import Model
from mify.tokenizer import train_tokenizer
from mify.training import run_state
from mify.training.gradients import micro_batches
from mify.training.metrics import read_metrics, without_times
from mify.training.parallel import World
from mify.training.trainer import train

TOY = Path(__file__).parent / "toy.py"
FIXED_ORDER = "--parallel.fixed_order=true"
BFLOAT16 = "--parallel.precision=bf16"


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "open_stream", PoisonedStream)
    monkeypatch.setattr(Model, "loss", Model.loss)  # restores what poison_losses replaces
    poison_losses()


def quiet(step: int, steps: int, record: dict) -> None:
    """No progress."""


def run_ranks(count: int, folder: Path, *arguments: str) -> None:
    """Toy runs on `count` processes, as torchrun would start them."""
    on_ranks(count, [str(TOY), str(folder), *arguments])


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks, in one start of them: plain, hsdp, bf16, with a NaN, in fixed order."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(
        2, folder, "--name=plain", "+", "--name=hsdp", "--parallel.shard=hsdp", "--parallel.hsdp_shards=1",
        "+", "--name=replicated", "--parallel.shard=none", "+", "--name=bf16", BFLOAT16,
        "+", "--name=nan", "poison=5", "+", "--name=fixed", FIXED_ORDER,
        "+", "--name=recomputed", "--parallel.activation_checkpointing=full",
        "+", "--name=lora", "--lora.rank=4", "+", "--name=lora-bf16", "--lora.rank=4", BFLOAT16,
    )  # fmt: skip
    return folder


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The plain run in this process."""
    train(toy_config(tmp_path, "--name=alone"), quiet)
    return tmp_path / "alone"


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run / "metrics.jsonl") if record.get("loss") is not None]


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


@pytest.mark.parametrize("name", ["plain", "hsdp", "replicated", "recomputed"])
def test_two_ranks_train_as_one_process(two_ranks: Path, alone: Path, tmp_path: Path, name: str) -> None:
    assert_close(alone, two_ranks / name, tmp_path)


def test_a_run_of_two_goes_on_with_one(two_ranks: Path, alone: Path, tmp_path: Path) -> None:
    shutil.copytree(two_ranks / "plain", tmp_path / "plain")
    shutil.rmtree(tmp_path / "plain" / "checkpoints" / "step-00000012")
    assert train(toy_config(tmp_path, "--name=plain"), quiet).step == 12
    assert_close(alone, tmp_path / "plain", tmp_path)


@pytest.mark.slow
def test_a_run_of_one_goes_on_with_two(alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone, tmp_path / "more")
    shutil.rmtree(tmp_path / "more" / "checkpoints" / "step-00000012")
    run_ranks(2, tmp_path, "--name=more")
    assert_close(alone, tmp_path / "more", tmp_path)


@pytest.mark.slow
def test_a_run_of_four_goes_on_with_two(alone: Path, tmp_path: Path) -> None:
    run_ranks(4, tmp_path, "--name=fewer", "--parallel.shard=hsdp", "--parallel.hsdp_shards=2")
    shutil.rmtree(tmp_path / "fewer" / "checkpoints" / "step-00000012")
    run_ranks(2, tmp_path, "--name=fewer")
    assert_close(alone, tmp_path / "fewer", tmp_path)


@pytest.mark.slow
def test_compiled_layers_with_selective_recomputation_train_as_plain_ones(alone: Path, tmp_path: Path) -> None:
    options = ("--parallel.compile=true", "--parallel.activation_checkpointing=selective")
    train(toy_config(tmp_path, "--name=compiled", *options), quiet)
    assert_close(alone, tmp_path / "compiled", tmp_path)


def test_two_ranks_evaluate_in_the_loop_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits per byte and infilled lines of a sharded model, amid training, through the command."""
    from mify.training import data

    monkeypatch.setattr(run_state, "open_stream", data.open_stream)
    texts = [f"def f{i}(a, b):\n    total = a * {i} + b\n    return total\n" * (1 + i % 5) for i in range(60)]
    documents = [Document.create(t, "code", "Python", "MIT", "s", "r", str(i)) for i, t in enumerate(texts)]
    write_shards(documents[6:], train_tokenizer(texts, 400), tmp_path / "tokens")
    write_documents(tmp_path / "held_out.parquet", documents[:6])
    overrides = (
        f"--data.sources.code.path={tmp_path / 'tokens'}", "--data.sources.code.weight=1", "--model.vocab_size=400",
        "--data.context=128", "--data.rows_per_step=4", f"--evaluation.held_out={tmp_path / 'held_out.parquet'}",
        "--evaluation.every_steps=2", "--evaluation.infilling=2", "--steps=4", "--schedule.decay_steps=1",
    )  # fmt: skip
    train(toy_config(tmp_path, "--name=one", *overrides), quiet)
    recipe = str(TOY.with_suffix(".toml"))
    on_ranks(2, ["-m", "mify.training.train", recipe, f"--folder={tmp_path}", "--name=two", *overrides])
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    scores = [[r for r in records if "held_out_bits_per_byte" in r] for records in (one, two)]
    assert [record["step"] for record in scores[1]] == [2, 4]
    for first, second in zip(*scores, strict=True):
        assert second["held_out_bits_per_byte"] == pytest.approx(first["held_out_bits_per_byte"], rel=1e-6)
        assert second["infilling_exact_match"] == first["infilling_exact_match"]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
    # Products in bf16: what is trained is not what is sampled from.
    train(toy_config(tmp_path, "--name=bf16", BFLOAT16, *overrides), quiet)
    in_bf16 = [r for r in read_metrics(tmp_path / "bf16" / "metrics.jsonl") if "held_out_bits_per_byte" in r]
    assert [record["infilling_exact_match"] for record in in_bf16] == [r["infilling_exact_match"] for r in scores[0]]


def test_bf16_products_train_nearly_alike(two_ranks: Path, alone: Path, tmp_path: Path) -> None:
    train(toy_config(tmp_path, "--name=bf16", BFLOAT16), quiet)
    for run in (two_ranks / "bf16", tmp_path / "bf16"):
        assert losses(run) != losses(alone)
        assert max(abs(x - y) / x for x, y in zip(losses(run), losses(alone), strict=True)) <= 2e-2
    master = weights(tmp_path / "bf16", tmp_path / "w.pt")
    assert all(value.dtype == torch.float32 for value in master.values())


def test_more_micro_batches_train_as_one(alone: Path, tmp_path: Path) -> None:
    train(toy_config(tmp_path, "--name=four", "--data.micro_rows=2"), quiet)
    assert_close(alone, tmp_path / "four", tmp_path)


@pytest.mark.parametrize(("rows", "most", "sizes"), [(8, 4, [4, 4]), (6, 4, [3, 3]), (5, 2, [1] * 5), (3, 4, [3])])
def test_micro_batches_are_equal_and_never_larger_than_asked_for(
    tmp_path: Path, rows: int, most: int, sizes: list[int]
) -> None:
    """Of a rank's share or a virtual shard, which the number of rows need not divide."""
    config = toy_config(tmp_path, f"--data.rows_per_step={4 * rows * most}", f"--data.micro_rows={most}")
    batch = PoisonedStream(dataclasses.replace(config, data=dataclasses.replace(
        config.data, rows_per_step=rows, micro_rows=None)), World(0, 1, 1, torch.device("cpu"))).batch(0)  # fmt: skip
    parts = micro_batches(config, batch)
    assert [part.num_rows for part in parts] == sizes
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_recomputed_activations_change_no_bit(alone: Path, tmp_path: Path, kind: str) -> None:
    train(toy_config(tmp_path, "--name=recomputed", f"--parallel.activation_checkpointing={kind}"), quiet)
    assert losses(tmp_path / "recomputed") == losses(alone)


def test_a_nan_on_one_rank_is_skipped_by_all(two_ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = read_metrics(two_ranks / "nan" / "metrics.jsonl")
    (skipped,) = [record for record in records if record.get("event") == "skipped"]
    assert (skipped["batch"], skipped["step"]) == (5, 6)
    # The rows of the rank whose loss is wrong, and the documents in them.
    assert skipped["rows"] == [[4, 7]]
    assert skipped["documents"] == [f"batch-5-row-{row}" for row in range(4, 8)]
    assert [record["step"] for record in records if record.get("loss", 0) is None] == [6]
    assert all(torch.isfinite(value).all() for value in weights(two_ranks / "nan", tmp_path / "w.pt").values())
    monkeypatch.setenv("TOY_POISON", "5")
    train(toy_config(tmp_path, "--name=nan"), quiet)
    both = zip(losses(tmp_path / "nan"), losses(two_ranks / "nan"), strict=True)
    assert max(abs(x - y) / x for x, y in both) <= 1e-6


def assert_same_bits(one: Path, many: Path, tmp_path: Path) -> None:
    assert without_times(read_metrics(one / "metrics.jsonl")) == without_times(read_metrics(many / "metrics.jsonl"))
    a, b = weights(one, tmp_path / "a.pt"), weights(many, tmp_path / "b.pt")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_in_fixed_order_two_ranks_compute_the_bits_of_one(two_ranks: Path, tmp_path: Path) -> None:
    train(toy_config(tmp_path, FIXED_ORDER), quiet)
    assert_same_bits(tmp_path / "toy", two_ranks / "fixed", tmp_path)


@pytest.mark.slow
def test_in_fixed_order_four_ranks_compute_the_bits_of_one(tmp_path: Path) -> None:
    overrides = (FIXED_ORDER, "--steps=50")
    train(toy_config(tmp_path / "one", *overrides), quiet)
    run_ranks(4, tmp_path / "four", *overrides)
    assert_same_bits(tmp_path / "one" / "toy", tmp_path / "four" / "toy", tmp_path)


def test_an_adapter_trains_on_two_ranks_as_on_one(two_ranks: Path, tmp_path: Path) -> None:
    one = train(toy_config(tmp_path, "--name=lora", "--lora.rank=4"), quiet)
    assert losses(two_ranks / "lora") == pytest.approx(losses(tmp_path / "lora"), rel=1e-5)
    assert losses(two_ranks / "lora-bf16") == pytest.approx(losses(tmp_path / "lora"), rel=0.05)
    base, tuned = load(one.checkpoint), load(two_ranks / "lora")
    for (name, a), b in zip(base.state_dict().items(), tuned.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
