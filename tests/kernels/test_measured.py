"""The table of measured times: read, refused, looked up, merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mify.kernels.attention.gqa  # noqa: F401
from mify.kernels import dispatch, measured
from mify.kernels.dispatch import Device
from mify.kernels.measured import Entry, Like, dump, fastest_first, merged, parse

H200 = Device("cuda", (9, 0), name="NVIDIA H200")
SHAPE = {
    "tokens": 32768, "query_heads": 20, "kv_heads": 4, "head_dim": 128, "max_seqlen": 8192, "window": 0, "causal": 1,
    "deterministic": 0, "mean_length": 1024, "equal_lengths": 0, "eager": 1,
}  # fmt: skip


def entry(times: dict[str, float], device: str = H200.name, dtype: str = "bfloat16", **sizes: int) -> Entry:
    return Entry("gqa", device, dtype, SHAPE | sizes, times)


def test_the_committed_table_is_one_and_says_where_it_was_measured() -> None:
    entries = measured.load()
    assert dump(merged(entries, ())) == measured.FILE.read_text(encoding="utf-8")
    assert all(entry.source and entry.device for entry in entries)


def test_the_measured_order_goes_before_the_rule() -> None:
    def chosen(table: list[Entry], device: Device = H200, dtype: torch.dtype = torch.bfloat16, **sizes: int) -> str:
        return dispatch.choose("gqa", "auto", device, dtype, SHAPE | sizes, table)

    fa3_wins = entry({"triton": 900.0, "fa3": 800.0, "nonsense": 1.0})
    assert chosen([]) == "triton"
    assert chosen([fa3_wins]) == "fa3"
    assert chosen([fa3_wins], tokens=50_000) == "fa3"
    assert chosen([fa3_wins], tokens=50_000, mean_length=2000) == "triton", "too far away together"
    assert chosen([fa3_wins], kv_heads=5) == "triton"
    assert chosen([fa3_wins], deterministic=1) == "triton"
    assert chosen([fa3_wins], dtype=torch.float16) == "triton"
    assert chosen([fa3_wins], device=Device("cuda", (9, 0), name="NVIDIA H100")) == "triton"
    without = Device("cuda", (9, 0), {"fa3": "not installed"}, H200.name)
    assert chosen([fa3_wins], device=without) == "triton", "the next one that can run"
    nearer = entry({"fa4": 1.0, "fa3": 2.0}, mean_length=1500)
    assert chosen([fa3_wins, nearer], mean_length=1450) == "fa4"
    assert chosen([fa3_wins, nearer], mean_length=1100) == "fa3"
    with pytest.raises(ValueError, match="cannot run here"):
        dispatch.choose("gqa", "fa3", without, torch.bfloat16, SHAPE, [fa3_wins])


def test_the_rules_where_nothing_was_measured() -> None:
    def order(capability: tuple[int, int], **sizes: int) -> tuple[str, ...]:
        return dispatch.order("gqa", Device("cuda", capability), torch.bfloat16, SHAPE | sizes, [])

    assert order((9, 0))[:3] == ("triton", "fa3", "fa4")
    assert order((9, 0), mean_length=8192)[:4] == ("cudnn", "fa3", "fa4", "triton")
    assert order((8, 0), mean_length=8192)[:2] == ("fa2", "torch_flash")
    assert order((10, 0), mean_length=8192)[:2] == ("cudnn", "fa4")
    assert order((9, 0), mean_length=8192, eager=0)[0] == "triton"
    for capability in ((8, 0), (9, 0), (10, 0)):
        assert sorted(order(capability)) == sorted(b.name for b in dispatch.ops()["gqa"])
        assert order(capability)[-1] == "ref"

    def chosen(capability: tuple[int, int], dtype: torch.dtype = torch.bfloat16, **sizes: int) -> str:
        return dispatch.choose("gqa", "auto", Device("cuda", capability), dtype, SHAPE | sizes, [])

    long = {"mean_length": 8192, "tokens": 32768}
    assert chosen((9, 0), **long, equal_lengths=1) == "cudnn"
    assert chosen((9, 0), **long) == "fa3"
    assert chosen((9, 0), **long, window=512, equal_lengths=1) == "fa3"
    assert chosen((9, 0), **long, deterministic=1, equal_lengths=1) == "fa3"
    assert chosen((9, 0), **long, head_dim=40) == "fa3"
    assert chosen((9, 0), torch.float32, **long) == "triton"
    assert chosen((9, 0), torch.float64, **long) == "ref"
    assert chosen((8, 0), **long) == "fa2"
    assert chosen((7, 5), **long) == "ref"
    assert chosen((9, 0), head_dim=20) == "ref"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "holds a list"),
        ("{}", "has the format None"),
        ('{"format": "other", "version": 1, "entries": []}', "has the format 'other'"),
        ('{"format": "mify.measured", "version": 2, "entries": []}', "version 2"),
        ('{"measured": [{"op": "gqa"}]}', "entry 0"),
        ('{"measured": [{"op": "gqa", "device": "x", "dtype": "y", "shape": {}, "microseconds": {}}]}', "is empty"),
        ('{"measured": [{"op": "g", "device": "x", "dtype": "y", "shape": {}, "microseconds": {"a": 0}}]}', "took 0"),
        ('{"measured": [{"op": "g", "device": "", "dtype": "", "shape": {"n": 0.5}, "microseconds": {"a": 1}}]}',
         "n is 0.5"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse(text, "here.json")
    assert "here.json" in str(caught.value)


def test_results_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "measured.json"
    table.write_text(dump([entry({"fa2": 3.0})]))
    monkeypatch.setattr(measured, "FILE", table)
    measured.load.cache_clear()
    result = tmp_path / "result.json"
    rows = [entry({"triton": 5.0, "fa2": 4.0}), entry({"triton": 1.0}, kv_heads=5)]
    result.write_text(json.dumps({"rows": [], "measured": json.loads(dump(rows))["entries"]}))
    assert measured.main([str(result)]) == 0
    assert measured.main([]) == 2
    measured.load.cache_clear()
    try:
        assert measured.load() == merged(rows, ())
        assert table.read_text() == dump(merged(rows, ()))
    finally:
        monkeypatch.undo()
        measured.load.cache_clear()


def test_distance() -> None:
    like = Like(equal=("a",), near=("n", "m"))
    assert like.distance({"a": 1, "n": 8, "m": 3}, {"a": 1, "n": 16, "m": 3}) == 1.0
    assert like.distance({"a": 1, "n": 8, "m": 0}, {"a": 1, "n": 8, "m": 1}) == 0.0
    assert like.distance({"a": 1, "n": 8, "m": 3}, {"a": 2, "n": 8, "m": 3}) == float("inf")
    assert like.distance({"a": 1, "n": 8}, {"a": 1, "n": 8, "m": 3}) == float("inf")
    assert fastest_first([], "gqa", "x", "y", {}, like) == ()
