"""Categories of risk, what a set of conversations holds of them, and answers that decline."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from mify.errors import MifyError
from mify.eval.refusals import refuses
from mify.post.safety import categories, category, check_ratio, is_harmful, safety_report


def test_the_taxonomy() -> None:
    found = categories()
    assert len(found) == 314
    assert len({item.risk for item in found.values()}) == 16
    assert len({item.area for item in found.values()}) == 4
    assert str(category("1.2.7")) == "Security Risks / Integrity / Malware"
    assert all(item.id == id for id, item in found.items())
    assert is_harmful("16.45.8")
    assert not is_harmful("")
    with pytest.raises(MifyError, match="did you mean"):
        category("1.2.777")


def test_it_is_the_benchmarks(eval_data: Path) -> None:
    import pyarrow as pa

    rows = pa.ipc.open_stream(eval_data / "airbench" / "judge_prompts.arrow").read_all().to_pylist()
    found = categories()
    assert {row["cate-idx"] for row in rows} == found.keys()
    for row in rows:
        item = found[row["cate-idx"]]
        assert (item.risk, item.group, item.name) == (row["l2-name"], row["l3-name"], row["l4-name"])


def test_what_a_mixture_holds() -> None:
    report = safety_report(["1.2.7"] * 2 + ["16.45.8"] + [""] * 8 + ["python"] * 4)
    assert (report["samples"], report["harmful"], report["general"], report["ratio"]) == (15, 3, 12, 4.0)
    assert report["risks"]["Security Risks"] == 2
    assert report["risks"]["Privacy"] == 0
    assert report["categories"] == 2
    check_ratio(3, 12)
    with pytest.raises(MifyError, match="3 harmful and 12 general conversations are not 1:3"):
        check_ratio(3, 12, (1, 3))
    with pytest.raises(MifyError, match="are not 1:4"):
        check_ratio(0, 0)
    with pytest.raises(MifyError, match=r"\[1\] is no ratio"):
        check_ratio(3, 12, (1,))


def test_templates_decline() -> None:
    import mify.post

    file = Path(mify.post.__path__[0]) / "refusals.toml"
    answers = tomllib.loads(file.read_text(encoding="utf-8"))["answers"]
    assert len(set(answers)) == len(answers) >= 5
    for text in answers:
        assert refuses(text)
        assert "{category}" in text
        assert len(text) < 300
