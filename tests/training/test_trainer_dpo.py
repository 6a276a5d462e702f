"""Preference optimization: TRL's loss and gradients, packed pairs, a stored reference, exact resume."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mify.data.batch import IGNORE_LABEL, AnnotatedBatch
from mify.data.segments import Segment
from mify.errors import MifyError
from mify.files import read_json, write_json
from mify.tokenizer import Tokenizer, train_tokenizer
from mify.training.config import load_recipe
from mify.training.metrics import read_metrics, without_times
from mify.training.objectives import dpo
from mify.training.objectives.dpo import PreferenceStream
from mify.training.preference_config import DpoSection
from mify.training.trainer import train

CONTEXT = 64


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["def add(a, b):\n    return a + b\n def sub(a, b): return a - b\n"] * 4, 400)


def pair(index: int) -> dict[str, Any]:
    return {
        "prompt": f"def f{index}(a, b):\n",
        "chosen": f"    return a + b{' + a' * (index % 3)}\n",
        "rejected": f"    return a - b{' - b' * (index % 2)}\n",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [json.dumps(pair(index)) for index in range(30)]
    lines.append(json.dumps({"prompt": "x", "chosen": "y " * 200, "rejected": "z"}))
    where = tmp_path / "pairs"
    where.mkdir()
    (where / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return where


def stream(folder: Path, tokenizer: Tokenizer, **changes: Any) -> PreferenceStream:
    options: dict[str, Any] = {"context": CONTEXT, "rows_per_step": 4, "seed": 5} | changes
    return PreferenceStream([("pairs", folder, 1.0)], tokenizer, **options)


def packed(pairs: list[list[tuple[list[int], list[int]]]], reference: torch.Tensor) -> AnnotatedBatch:
    """Pairs in rows of two, as the stream lays them."""
    source = PreferenceStream.__new__(PreferenceStream)
    source.pairs = [
        dpo.Pair(*(Segment.answer(prompt, answer) for prompt, answer in answers), 0, "") for answers in pairs
    ]
    source.context, source.pad_id, source.max_pairs, source.reference = CONTEXT, 1, 3, reference.numpy()
    source.blank = set()
    numbers = list(range(len(pairs)))
    return source.batch([numbers[i : i + 2] for i in range(0, len(numbers), 2)])


def padded(pairs: list[list[tuple[list[int], list[int]]]], reference: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same pairs as TRL's collator gives them: all chosen, then all rejected, padded on the right."""
    answers = [pair[which] for which in (0, 1) for pair in pairs]
    longest = max(len(prompt) + len(answer) for prompt, answer in answers)
    ids, attention, completion = torch.zeros(3, len(answers), longest, dtype=torch.int64).unbind()
    for row, (prompt, answer) in enumerate(answers):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor(prompt + answer)
        attention[row, :length] = 1
        completion[row, len(prompt) : length] = 1
    return {
        "input_ids": ids, "attention_mask": attention, "completion_mask": completion,
        "ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1],
    }  # fmt: skip


@pytest.mark.parametrize(("loss", "smoothing"), [("sigmoid", 0.0), ("robust", 0.1), ("ipo", 0.0)])
def test_loss_and_gradients_are_those_of_trl(loss: str, smoothing: float) -> None:
    trl = pytest.importorskip("trl", reason="pip install 'mify[rivals]'")
    from trl_stand_in import as_llama, dpo_trainer, gradients, largest_difference, tiny_model

    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    sizes = [(9, 5, 7), (4, 11, 3), (6, 2, 8)]  # prompt, chosen, rejected
    pairs = []
    for prompt, chosen, rejected in sizes:
        ids = [torch.randint(0, 97, (n,), generator=generator).tolist() for n in (prompt, chosen, rejected)]
        pairs.append([(ids[0], ids[1]), (ids[0], ids[2])])
    reference = torch.randn(len(pairs), 2, generator=generator, dtype=torch.float64) * 3 - 40
    batch = packed(pairs, reference)
    config = DpoSection(beta=0.3, loss=loss, label_smoothing=smoothing)  # type: ignore[arg-type]
    objective = dpo.Dpo.__new__(dpo.Dpo)
    objective._config = config
    total, sums = objective.loss(model, batch)
    ours = total / batch.num_units
    ours.backward()

    llama = as_llama(model)
    trainer = dpo_trainer(llama, beta=0.3, loss_types=[loss], label_smoothing=smoothing)
    theirs = trl.DPOTrainer._compute_loss(trainer, llama, padded(pairs, reference), False)
    theirs.backward()
    assert float((ours - theirs).detach().abs()) < 1e-6 * max(1.0, float(theirs.detach()))
    assert largest_difference(gradients(model), gradients(llama)) < 1e-6
    assert max(float(value.abs().max()) for value in gradients(model).values()) > 1e-3
    metrics = trainer._metrics["train"]
    names = dict(zip(dpo.Dpo.names, (sums / batch.num_units).tolist(), strict=True))
    for name, other in (
        ("rewards_chosen", "rewards/chosen"), ("rewards_rejected", "rewards/rejected"), ("margin", "rewards/margins"),
        ("accuracy", "rewards/accuracies"), ("log_prob_chosen", "logps/chosen"),
    ):  # fmt: skip
        assert names[name] == pytest.approx(metrics[other][0], abs=1e-6)


def test_blanked_pairs_keep_their_place_and_carry_no_loss(folder: Path, tokenizer: Tokenizer) -> None:
    from trl_stand_in import gradients, largest_difference, tiny_model

    whole = stream(folder, tokenizer)
    state = whole.state_dict()
    batch = next(iter(whole))
    skipped = whole.documents_after(state)[0][0]
    source = stream(folder, tokenizer, skip=(skipped + "0" * 48,))
    short = next(iter(source))
    assert torch.equal(short.tokens, batch.tokens)
    assert short.num_units == batch.num_units - 1
    objective = dpo.Dpo.__new__(dpo.Dpo)
    objective._config = DpoSection(beta=0.3)
    model = tiny_model(vocab_size=400)
    found = []
    for one in (batch, short):
        model.zero_grad()
        total, sums = objective.loss(model, one)
        total.backward()
        found.append((total.detach(), sums, gradients(model)))
    # With the reference at 0 the pair that is left out is worth what its own row says of it.
    (left,) = [number for number, pair in enumerate(whole.pairs) if pair.identity == skipped]
    model.zero_grad()
    alone, sums = objective.loss(model, whole.batch([[left]]))
    alone.backward()
    assert torch.allclose(found[0][0], found[1][0] + alone.detach())
    assert torch.allclose(found[0][1], found[1][1] + sums)
    added = {name: value + gradients(model)[name] for name, value in found[1][2].items()}
    assert largest_difference(found[0][2], added) < 1e-6


def test_conservative_loss_mixes_both_directions() -> None:
    ratios, lengths = torch.tensor([[1.0, -2.0], [0.5, 0.7]]), torch.ones(2, 2)
    forward = dpo.dpo_losses(ratios, lengths, DpoSection(beta=0.5))
    backward = dpo.dpo_losses(ratios.flip(1), lengths, DpoSection(beta=0.5))
    mixed = dpo.dpo_losses(ratios, lengths, DpoSection(beta=0.5, label_smoothing=0.2))
    assert torch.allclose(mixed, 0.8 * forward + 0.2 * backward)


def test_an_epoch_holds_every_pair_once_and_whole(folder: Path, tokenizer: Tokenizer) -> None:
    source = stream(folder, tokenizer, rows_per_step=1)
    seen: list[str] = []
    for batch in source:
        assert isinstance(batch, AnnotatedBatch)
        bounds = batch.cu_seqlens.unique().tolist()
        segments = list(pairwise(bounds))[: 2 * batch.num_units]
        for number, (low, high) in enumerate(segments):
            assert batch.notes["slot"][low:high].tolist() == [number] * (high - low)
            assert batch.positions[low:high].tolist() == list(range(high - low))
            text = tokenizer.decode(batch.tokens[low:high].tolist())
            answer = text.partition("\n")[2]
            said = [label for label in batch.labels[low:high].tolist() if label != IGNORE_LABEL]
            assert tokenizer.decode(said) == answer
            seen.append(text)
        assert set(batch.labels[segments[-1][1] :].tolist()) <= {IGNORE_LABEL}
        if source.state_dict()["epoch"]:
            break
    expected = [
        pair(i)["prompt"] + pair(i)[which] + "<|endoftext|>" for i in range(30) for which in ("chosen", "rejected")
    ]
    assert sorted(seen) == sorted(expected)
    assert source.ledger()["pairs"]["too_long"] == 1


def test_ranks_share_the_batch_and_a_state_goes_on_exactly(folder: Path, tokenizer: Tokenizer) -> None:
    whole = list(islice(stream(folder, tokenizer), 12))
    halves = [list(islice(stream(folder, tokenizer, rank=rank, world_size=2), 12)) for rank in range(2)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(batch.tokens, torch.cat([first.tokens, second.tokens]))
        assert batch.num_units == first.num_units + second.num_units
        parts = batch.split(4)
        assert sum(part.num_units for part in parts) == batch.num_units
        assert torch.equal(torch.cat([part.notes["slot"] for part in parts]), batch.notes["slot"])  # type: ignore[attr-defined]
    before = stream(folder, tokenizer)
    for _ in islice(before, 5):
        pass
    after = stream(folder, tokenizer)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for batch, again in zip(whole[5:], islice(after, 7), strict=True):
        assert torch.equal(batch.tokens, again.tokens)
    with pytest.raises(MifyError, match="others than these"):
        after.load_state_dict(stream(folder, tokenizer, seed=6).state_dict())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "Expecting"),
        ('{"prompt": "x", "chosen": "y"}', "it lacks 'rejected'"),
        ('{"prompt": "x", "chosen": "y", "rejected": "y"}', "both answers are the same"),
        ('{"prompt": "", "chosen": "y", "rejected": "z"}', "neither a text nor"),
        ('{"prompt": "x", "chosen": 3, "rejected": "z"}', "an answer is no text"),
        ('{"prompt": [{"role": "assistant", "content": "x"}], "chosen": "y", "rejected": "z"}', "assistant's turn"),
        ("[1]", "[1] is no object"),
        ('{"prompt": [{"role": "user"}], "chosen": "y", "rejected": "z"}', "content of a user message is absent"),
        ('{"prompt": [{"role": "wizard", "content": "x"}], "chosen": "y", "rejected": "z"}', "'wizard' is none of"),
        ('{"prompt": [{"role": "user", "content": "x"}], "chosen": [{"role": "user"}], "rejected": "z"}', "one assist"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, tokenizer: Tokenizer, line: str, problem: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(MifyError, match=r"bad\.jsonl, line 1, is no pair of answers") as caught:
        stream(tmp_path, tokenizer)
    assert problem in caught.value.problem


def test_conversations_end_with_the_turn(tmp_path: Path, tokenizer: Tokenizer) -> None:
    line = {
        "prompt": [{"role": "user", "content": "add"}],
        "chosen": [{"role": "assistant", "content": "a + b"}],
        "rejected": "a - b",
    }
    (tmp_path / "chat.jsonl").write_text(json.dumps(line), encoding="utf-8")
    (only,) = stream(tmp_path, tokenizer).pairs
    assert tokenizer.decode(only.chosen.ids.tolist()).endswith("<|im_start|>assistant\na + b<|im_end|>")
    assert tokenizer.decode(only.rejected.ids[only.rejected.loss].tolist()) == "a - b<|im_end|>"


def settings(folder: Path, tokenizer: Tokenizer, runs: Path, *overrides: str) -> Any:
    tokenizer.save(runs / "tokenizer")
    return load_recipe(
        Path(__file__).parent / "toy.toml",
        [
            f"--folder={runs}", "--objective=dpo", f"--data.sources.pairs.path={folder}", "--data.fim.rate=0",
            "--data.sources.pairs.weight=1", f"--data.tokenizer={runs / 'tokenizer'}", f"--data.context={CONTEXT}",
            f"--init.weights={runs / 'base'}", "--data.rows_per_step=4", "--optimizer.learning_rate=3e-3",
            "--data.micro_rows=2", "--schedule.kind=constant", "--schedule.warmup_steps=0",
            "--schedule.decay_steps=none", *overrides,
        ],
    )  # fmt: skip


@pytest.fixture
def runs(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A folder with a model to start from."""
    from mify.config import ModelConfig
    from mify.export.hf import export_hf
    from mify.model import Model

    model = Model(ModelConfig("base", 2, 32, 2, 1, 16, 48, tokenizer.vocab_size, CONTEXT), seed=2)
    model.tokenizer = tokenizer
    export_hf(model, tmp_path / "base")
    return tmp_path


def quiet(step: int, steps: int, record: dict[str, Any]) -> None:
    pass


def test_training_prefers_the_chosen_and_resumes_exactly(folder: Path, tokenizer: Tokenizer, runs: Path) -> None:
    whole = train(settings(folder, tokenizer, runs, "--name=whole"), quiet)
    records = [record for record in read_metrics(whole.folder / "metrics.jsonl") if "loss" in record]
    assert records[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert records[0]["margin"] == pytest.approx(0, abs=1e-6)
    assert records[-1]["margin"] > 0
    assert records[-1]["accuracy"] > 0.9
    assert records[-1]["rewards_chosen"] > records[-1]["rewards_rejected"]
    assert whole.ledger["pairs"]["too_long"] == 1

    # Stopped after a checkpoint amid an epoch and continued; the reference is read back, not computed anew.
    train(settings(folder, tokenizer, runs, "--name=halves", "--steps=8"), quiet)
    stored = runs / "halves" / "reference.json"
    kept = stored.stat().st_mtime_ns
    again = train(settings(folder, tokenizer, runs, "--name=halves"), quiet)
    assert stored.stat().st_mtime_ns == kept
    assert again.step == whole.step
    first, second = (without_times(read_metrics(r.folder / "metrics.jsonl")) for r in (whole, again))
    assert first == second


def test_the_reference_is_keyed_by_model_and_data(folder: Path, tokenizer: Tokenizer, runs: Path) -> None:
    shared = f"--dpo.reference={runs / 'shared.json'}"
    train(settings(folder, tokenizer, runs, "--name=a", "--steps=6", shared), quiet)
    document = read_json(runs / "shared.json")
    assert (document["format"], document["version"]) == ("reference-log-probabilities", 1)
    assert len(document["log_probs"]) == 30
    train(settings(folder, tokenizer, runs, "--name=b", "--steps=6", "--dpo.beta=0.5", shared), quiet)
    (folder / "more.jsonl").write_text(json.dumps(pair(77)), encoding="utf-8")
    with pytest.raises(MifyError, match="holds log-probabilities of other pairs"):
        train(settings(folder, tokenizer, runs, "--name=c", "--steps=6", shared), quiet)
    (folder / "more.jsonl").unlink()
    write_json(runs / "shared.json", document | {"key": document["key"] | {"model": "another"}})
    with pytest.raises(MifyError, match="another reference model"):
        train(settings(folder, tokenizer, runs, "--name=d", "--steps=6", shared), quiet)
    write_json(runs / "shared.json", document | {"version": 2})
    with pytest.raises(MifyError, match="no reference-log-probabilities of version 1"):
        train(settings(folder, tokenizer, runs, "--name=e", "--steps=6", shared), quiet)


def test_mistakes_in_the_configuration_are_named(folder: Path, tokenizer: Tokenizer, runs: Path) -> None:
    for override, problem in (
        ("--init.weights=none", "starts from a model"),
        ("--data.fim.rate=0.1", "no fill-in-the-middle"),
        ("--dpo.beta=0", "dpo.beta = 0"),
        ("--dpo.label_smoothing=1.5", "label_smoothing = 1.5"),
        ("--dpo.loss=ipo --dpo.label_smoothing=0.1", "ipo knows no dpo.label_smoothing"),
        ("--optimizer.z_loss=1e-4", "dpo has no z-loss"),
        ("--data.sources.pairs.parts=1", "parts belongs to sft"),
    ):
        with pytest.raises(MifyError, match=problem):
            settings(folder, tokenizer, runs, *override.split())
