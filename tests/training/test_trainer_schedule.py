"""Learning rates and decay groups against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from toy import toy_config

from mify.config import ModelConfig
from mify.model import Model
from mify.training.config import OptimizerSection, ScheduleSection
from mify.training.optim import learning_rate, make_optimizer


def rates(steps: int, schedule: ScheduleSection) -> list[float]:
    return [learning_rate(step, steps, 1.0, schedule) for step in range(steps)]


def test_wsd_warms_up_stays_and_decays_to_the_floor() -> None:
    got = rates(20, ScheduleSection(kind="wsd", warmup_steps=4, decay_steps=5, floor=0.1))
    assert got[:4] == [0.25, 0.5, 0.75, 1.0]
    assert got[4:15] == [1.0] * 11
    want = [1 - 0.9 * math.sqrt(x) for x in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert got[15:] == pytest.approx(want)
    linear = rates(20, ScheduleSection(kind="wsd", warmup_steps=4, decay_steps=5, decay_shape="linear", floor=0.0))
    assert linear[15:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


def test_wsd_decays_over_a_tenth_where_nothing_is_said() -> None:
    got = rates(50, ScheduleSection(kind="wsd"))
    assert got[:45] == [1.0] * 45
    assert got[-1] == pytest.approx(0.1)


def test_cosine_is_torchs_cosine() -> None:
    schedule = ScheduleSection(kind="cosine", warmup_steps=0, floor=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.1)
    for got in rates(30, schedule):
        optimizer.step()
        theirs.step()
        assert got == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
    warm = rates(40, ScheduleSection(kind="cosine", warmup_steps=10, floor=0.0))
    assert warm[9] == 1.0
    assert warm == sorted(warm[:10]) + sorted(warm[10:], reverse=True)


def test_no_decay_on_embeddings_and_norms() -> None:
    model = Model(ModelConfig("toy", 2, 32, 2, 1, 16, 48, 64, 32, tie_embeddings=False))
    optimizer = make_optimizer(model, OptimizerSection(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert {name for name, value in names.items() if value == 0.0} == {
        name for name, p in model.named_parameters() if p.ndim == 1 or "embed_tokens" in name
    }
    assert names["lm_head.weight"] == 0.3
    assert len(names) == len(list(model.parameters()))


def test_the_toy_recipe_has_a_schedule(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = toy_config(tmp_path)
    got = rates(config.steps, config.schedule)
    assert got[0] < got[1] == got[7] > got[8] > got[-1]
