"""The mixture's arithmetic."""

from __future__ import annotations

import pytest

from mify.curation.mixture import mixture

PARTS = {"code": 78.0, "text": 12.0, "math": 10.0}


def test_targets_follow_the_parts_and_factors_bring_each_domain_there() -> None:
    available = {"code": 900, "text": 50, "math": 50}
    found = mixture(available, PARTS)["domains"]
    assert {domain: row["target_bytes"] for domain, row in found.items()} == {"code": 780, "text": 120, "math": 100}
    for domain, row in found.items():
        assert row["repeat_factor"] * available[domain] == pytest.approx(row["target_bytes"], abs=0.01)
    seen = {domain: row["repeat_factor"] * available[domain] for domain, row in found.items()}
    assert seen["code"] / sum(seen.values()) == pytest.approx(0.78, abs=1e-3)


def test_what_is_repeated_is_said() -> None:
    statement = mixture({"code": 900, "text": 50, "math": 50}, PARTS)["statement"]
    assert statement == (
        "to train code/text/math at 78:12:10: 87% of code is seen per epoch; text is repeated 2.40 times;"
        " math is repeated 2.00 times"
    )
    assert mixture({"code": 78, "text": 12, "math": 10}, PARTS)["statement"].endswith("all is seen once")


def test_an_absent_domain_gives_its_part_to_the_others() -> None:
    found = mixture({"code": 500, "math": 500}, PARTS)
    assert found["domains"]["text"]["repeat_factor"] == 0
    assert found["domains"]["code"]["target_share"] == pytest.approx(78 / 88, abs=1e-6)
    assert "text is absent" in found["statement"]


def test_nothing_at_all_is_no_division_by_zero() -> None:
    assert mixture({}, PARTS)["domains"]["code"]["target_bytes"] == 0


def test_only_the_ratio_of_the_parts_counts() -> None:
    available = {"code": 700, "text": 200, "math": 100}
    assert mixture(available, PARTS)["domains"] == mixture(available, {k: v / 100 for k, v in PARTS.items()})["domains"]
