"""The study of GRPO: its parts quickly; slowly, that rewards from hidden tests lift the pass rate on held-out specs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mify.errors import MifyError
from mify.eval.sandbox import sandbox_kind
from mify.files import read_json
from mify.training.ablate_grpo import Row, conclusion, run_grpo_study


def row(arm: str, low: float, high: float, by_seed: tuple[float, ...]) -> Row:
    return Row(arm, "greedy", 0.3, sum(by_seed) / len(by_seed), low, high, by_seed, 60.0)


def test_a_claim_needs_the_interval_and_every_seed() -> None:
    text = conclusion(
        [
            row("warm", 0, 0, (0, 0)),
            row("grpo", 0.05, 0.2, (0.1, 0.12)),
            row("shuffled", -0.2, -0.05, (-0.1, -0.12)),
            row("sft", 0.01, 0.2, (0.22, -0.01)),
        ],
        2,
    )
    lines = text.splitlines()
    assert lines[1] == "warm, greedy: 30.0% solved."
    assert lines[2].endswith("+11.0% [+5.0%, +20.0%], better.")
    assert lines[3].endswith("worse.")
    assert lines[4].endswith("not told apart.")


def test_unknown_arms_are_named(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="unknown arms: ppo"):
        run_grpo_study(tmp_path, seeds=[1], arms=["ppo"], say=print)


def test_data_of_another_size_are_not_taken_for_these(tmp_path: Path) -> None:
    from mify.training import ablate_grpo

    folder = ablate_grpo._data(tmp_path / "seed-1", 1, 10)
    assert ablate_grpo._data(folder, 1, 10) == folder
    with pytest.raises(MifyError, match="holds 10 held-out specs, not 12"):
        ablate_grpo._data(folder, 1, 12)


@pytest.mark.slow
def test_grpo_lifts_the_pass_rate_and_shuffled_rewards_do_not(tmp_path: Path) -> None:
    """One seed of `mify ablate grpo`: each run within 15 minutes on a CPU."""
    if not sandbox_kind().confined:
        pytest.skip(f"no sandbox works here: {sandbox_kind().reason}")
    started = time.monotonic()
    rows = run_grpo_study(tmp_path, seeds=[1], arms=["grpo", "shuffled"], say=print)
    assert time.monotonic() - started < 3 * 900
    found = {(one.arm, one.how): one for one in rows}
    assert 0.2 < found["warm", "sampled"].solved < 0.75
    for how in ("greedy", "sampled"):
        assert found["grpo", how].low > 0
        assert found["grpo", how].solved > found["shuffled", how].solved
    document = read_json(tmp_path / "grpo.json")
    assert (document["format"], document["version"]) == ("mify-grpo-study", 1)
    # Again: nothing is trained a second time.
    again = time.monotonic()
    assert run_grpo_study(tmp_path, seeds=[1], arms=["grpo", "shuffled"], say=print) == rows
    assert time.monotonic() - again < 30
