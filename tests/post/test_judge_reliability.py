"""A judge's scores against verdicts: known judges give known figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mify.post.judge_reliability import auc, expected_calibration_error, reliability


def test_auc_is_scikit_learns_with_ties() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(3)
    for _ in range(20):
        scores, passed = generator.integers(0, 5, 80) / 4, generator.random(80) < 0.4
        assert auc(scores, passed) == pytest.approx(metrics.roc_auc_score(passed, scores))


def test_figures_counted_by_hand() -> None:
    scores = [0.0, 0.25, 0.5, 0.5, 0.75, 1.0]
    passed = [False, True, False, True, True, True]
    found = reliability(scores, passed, 0.5, resamples=200)
    value = {name: figure.value for name, figure in found.figures.items()}
    # Pairs (passed, failed): of 4 * 2, 0.25 > 0, 0.5 > 0, 0.5 = 0.5, 0.75 and 1 above both: 6.5; 0.25 < 0.5.
    assert value["auc"] == pytest.approx(6.5 / 8)
    assert value["precision"] == pytest.approx(3 / 4)
    assert value["recall"] == pytest.approx(3 / 4)
    assert value["accuracy"] == pytest.approx(4 / 6)
    assert value["base"] == pytest.approx(4 / 6)
    assert value["ece"] == pytest.approx((0 + 0.75 + 0 + 0.25 + 0) / 6)
    assert value["brier"] == pytest.approx((0 + 0.75**2 + 0.25 + 0.25 + 0.0625 + 0) / 6)
    assert (found.items, found.passed) == (6, 4)
    assert [row[2] for row in found.table] == [1, 1, 2, 1, 1]


def test_a_coin_is_no_judge_and_a_calibrated_one_is() -> None:
    generator = np.random.default_rng(0)
    wrongly_trusted = 0
    for seed in range(40):
        passed = generator.random(200) < 0.5
        found = reliability(generator.integers(0, 5, 200) / 4, passed, resamples=300, seed=seed)
        wrongly_trusted += found.better_than_chance
    assert wrongly_trusted <= 4
    scores = generator.random(4000)
    passed = generator.random(4000) < scores
    found = reliability(scores, passed, resamples=200)
    assert found.better_than_chance
    assert found.figures["ece"].value < 0.03
    assert found.figures["auc"].value == pytest.approx(5 / 6, abs=0.02)  # of uniform scores that are probabilities
    boastful = np.sqrt(scores)
    assert expected_calibration_error(boastful, passed) == pytest.approx(np.mean(boastful - scores), abs=0.02)


def test_one_kind_alone_and_nothing() -> None:
    for scores, passed in (([0.5, 0.7], [True, True]), ([], [])):
        found = reliability(scores, passed, resamples=20)
        assert math.isnan(found.figures["auc"].value)
        assert not found.better_than_chance
        assert found.to_dict()["auc"] == {"value": None, "low": None, "high": None}


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="outside 0 to 1"):
        reliability([1.5], [True])
    with pytest.raises(ValueError, match="the shapes are"):
        reliability([0.5], [True, False])
