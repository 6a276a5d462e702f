"""GRPO's arithmetic on fixed rollouts: TRL's advantages, losses and gradients; what is left out changes nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trl_stand_in import as_llama, gradients, grpo_trainer, largest_difference, tiny_model

from mify.data.batch import AnnotatedBatch
from mify.model import Model
from mify.training.objectives.grpo import Grpo
from mify.training.parallel import World
from mify.training.preference_config import GrpoSection
from mify.training.rollouts import Sampled, advantages, answer_log_probs, shuffled

CONTEXT = 64


def rollout(answers: int = 6, seed: int = 3) -> list[Sampled]:
    """Answers of unequal lengths, two to a prompt. Prompts of one length: TRL pads them on the left."""
    generator = np.random.Generator(np.random.PCG64(seed))
    found = []
    for index in range(answers):
        if index % 2 == 0:
            prompt = generator.integers(0, 97, 6).tolist()
        answer = generator.integers(0, 97, int(generator.integers(2, 12))).tolist()
        found.append(Sampled(index // 2, list(prompt), answer, True, advantage=float(generator.normal())))
    return found


def objective(config: GrpoSection) -> Grpo:
    """The objective without tasks, judge and files, none of which enters the loss."""
    made = Grpo.__new__(Grpo)
    made.config, made.context, made._multiple = config, CONTEXT, 1
    made.stream = type("Stream", (), {"pad_id": 1})()
    made.world = type("World", (), {"size": 1, "rank": 0})()
    return made


def padded(answers: list[Sampled], extra: dict[str, list[list[float]]]) -> dict[str, Tensor]:
    """As TRL's trainer lays a rollout: prompts padded on the left, answers on the right."""
    most, longest = max(len(a.prompt) for a in answers), max(len(a.answer) for a in answers)
    prompts, prompt_mask = torch.zeros(2, len(answers), most, dtype=torch.int64).unbind()
    ids, mask = torch.zeros(2, len(answers), longest, dtype=torch.int64).unbind()
    for row, answer in enumerate(answers):
        prompts[row, most - len(answer.prompt) :] = torch.tensor(answer.prompt)
        prompt_mask[row, most - len(answer.prompt) :] = 1
        ids[row, : len(answer.answer)] = torch.tensor(answer.answer)
        mask[row, : len(answer.answer)] = 1
    inputs: dict[str, Tensor] = {
        "prompt_ids": prompts, "prompt_mask": prompt_mask, "completion_ids": ids, "completion_mask": mask,
        "advantages": torch.tensor([a.advantage for a in answers], dtype=torch.float64),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    for name, rows in extra.items():
        values = torch.zeros(len(answers), longest, dtype=torch.float64)
        for row, value in enumerate(rows):
            values[row, : len(value)] = torch.tensor(value, dtype=torch.float64)
        inputs[name] = values
    return inputs


def with_notes_in_fp64(made: Grpo, answers: list[Sampled]) -> AnnotatedBatch:
    batch = made.batch(answers)
    return AnnotatedBatch(
        batch.tokens, batch.labels, batch.positions, batch.cu_seqlens, batch.max_seqlen,
        notes={name: note.double() if note.is_floating_point() else note for name, note in batch.notes.items()},
    )  # fmt: skip


def plain(model: Model, answers: list[Sampled], temperature: float) -> list[list[float]]:
    alone = World(0, 1, 1, torch.device("cpu"))
    return answer_log_probs(model, answers, alone, temperature=temperature, context=CONTEXT, rows=2, pad_id=1)


CASES: list[tuple[dict[str, Any], float, bool]] = [
    ({"loss": "grpo"}, 1.0, False),
    ({"loss": "dr_grpo"}, 1.0, False),
    ({"loss": "dapo"}, 0.7, False),
    ({"loss": "dapo", "kl_weight": 0.05}, 1.0, True),
    ({"loss": "grpo", "kl_weight": 0.05, "clip_low": 0.1, "clip_high": 0.1}, 0.9, True),
    ({"loss": "dr_grpo", "importance_cap": 1.05}, 1.0, True),
]


@pytest.mark.parametrize(("options", "temperature", "off_policy"), CASES)
def test_loss_and_gradients_are_those_of_trl(options: dict[str, Any], temperature: float, off_policy: bool) -> None:
    trl = pytest.importorskip("trl", reason="pip install 'mify[rivals]'")
    model, answers = tiny_model(), rollout()
    config = GrpoSection(max_new_tokens=16, temperature=temperature, **options)
    generator = np.random.Generator(np.random.PCG64(4))

    def near(rows: list[list[float]], by: float) -> list[list[float]]:
        return [np.float32(np.array(row) + generator.normal(0, by, len(row))).tolist() for row in rows]

    now = plain(model, answers, temperature)
    old, reference, sampled = near(now, 0.2), near(now, 0.3), []
    extra: dict[str, list[list[float]]] = {}
    if off_policy:
        extra["old_per_token_logps"] = old
        for answer, values in zip(answers, old, strict=True):
            answer.old = values
    if "kl_weight" in options:
        extra["ref_per_token_logps"] = reference
        for answer, values in zip(answers, reference, strict=True):
            answer.reference = values
    trainer_options: dict[str, Any] = {}
    if "importance_cap" in options:
        sampled = near(old, 0.1)
        for answer, values in zip(answers, sampled, strict=True):
            answer.sampled = values
        # TRL's own truncation, by token (vllm_importance_sampling_mode = "token_truncate").
        extra["importance_sampling_ratio"] = [
            np.exp(np.array(a) - np.array(b)).clip(max=1.05).tolist() for a, b in zip(old, sampled, strict=True)
        ]
        trainer_options["use_vllm"] = True

    ours, sums = objective(config).loss(model, batch := with_notes_in_fp64(objective(config), answers))
    (ours / batch.num_units).backward()
    llama = as_llama(model, temperature)
    trainer = grpo_trainer(
        llama, loss_type=config.loss, epsilon_low=config.clip_low, epsilon_high=config.clip_high,
        beta=config.kl_weight, **trainer_options,
    )  # fmt: skip
    theirs = trl.GRPOTrainer._compute_loss(trainer, llama, padded(answers, extra))
    theirs.backward()
    assert float((ours / batch.num_units - theirs).detach().abs()) < 1e-6
    assert largest_difference(gradients(model), gradients(llama)) < 1e-6
    assert max(float(value.abs().max()) for value in gradients(model).values()) > 1e-3
    clipped = float(sums[2])
    if off_policy and "importance_cap" not in options:
        assert clipped > 0, "no token was clipped, so the clip was not tested"


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_trl(scale: str) -> None:
    trl_utils = pytest.importorskip("trl.trainer.utils", reason="pip install 'mify[rivals]'")
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0], [1.1, 0.1, math.nan, 0.1]])
    # As in trl.GRPOTrainer._generate_and_score_completions, multi_objective_aggregation = "sum_then_normalize".
    mean = torch.nanmean(rewards, dim=1).repeat_interleave(4)
    flat = rewards.reshape(-1)
    expected = flat - mean
    if scale == "group":
        expected = expected / (trl_utils.nanstd(rewards, dim=1).repeat_interleave(4) + 1e-4)
    elif scale == "batch":
        expected = expected / (trl_utils.nanstd(flat) + 1e-4)
    expected = expected.nan_to_num(0.0).reshape(3, 4)
    assert torch.allclose(advantages(rewards, scale), expected, atol=1e-6)
    assert advantages(rewards, scale)[2, 2] == 0


def test_answers_without_advantage_are_left_out_and_change_nothing() -> None:
    model, answers = tiny_model(), rollout(8)
    for number in (1, 2, 5):
        answers[number].advantage = 0.0
    for loss in ("grpo", "dr_grpo", "dapo"):
        config = GrpoSection(max_new_tokens=16, loss=loss)  # type: ignore[arg-type]
        made = objective(config)
        short = with_notes_in_fp64(made, answers)
        made.config = GrpoSection(max_new_tokens=16, loss=loss, kl_weight=1e-30)  # type: ignore[arg-type]
        for answer in answers:
            answer.reference = [0.0] * len(answer.answer)
        whole = with_notes_in_fp64(made, answers)
        made.config = config
        assert short.num_units == whole.num_units == 8
        assert short.num_labels < whole.num_labels
        found = []
        for batch in (short, whole):
            model.zero_grad()
            batch.notes.pop("reference", None)
            made.loss(model, batch)[0].backward()
            found.append(gradients(model))
        assert largest_difference(*found) < 1e-9

    for answer in answers:
        answer.advantage = 0.0
    empty = objective(GrpoSection(max_new_tokens=16)).batch(answers)
    assert empty.num_units == 8
    assert empty.num_labels == 0
    model.zero_grad()
    objective(GrpoSection(max_new_tokens=16)).loss(model, empty)[0].backward()
    assert all(float(value.abs().max()) == 0 for value in gradients(model).values())


def test_micro_batches_add_up_to_the_batch() -> None:
    model, answers = tiny_model(), rollout(16)
    made = objective(GrpoSection(max_new_tokens=16))
    made._multiple = 4
    batch = with_notes_in_fp64(made, answers)
    total, sums = made.loss(model, batch)
    parts = [made.loss(model, part) for part in batch.split(4)]
    assert torch.allclose(total, sum(part[0] for part in parts))
    assert torch.allclose(sums, sum(part[1] for part in parts))
    assert float(sums[1]) / batch.num_units == pytest.approx(mean_entropy(model, answers), rel=1e-4)


def mean_entropy(model: Model, answers: list[Sampled]) -> float:
    """Over an answer's tokens, then over answers."""
    found = []
    for answer in answers:
        ids = torch.tensor(answer.prompt + answer.answer)
        bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
        with torch.no_grad():
            logits = model.logits(model(ids, torch.arange(len(ids)), bounds, len(ids)))
        spread = torch.log_softmax(logits[len(answer.prompt) - 1 : -1], -1)
        found.append(float(-(spread.exp() * spread).sum(-1).mean()))
    return float(np.mean(found))


def test_the_control_keeps_the_rewards_and_loses_their_places() -> None:
    rewards = np.arange(32.0).reshape(8, 4)
    dealt = shuffled(rewards, 5)
    assert sorted(dealt.ravel()) == sorted(rewards.ravel())
    assert (dealt != rewards).sum() > 24
    assert np.array_equal(dealt, shuffled(rewards, 5))
