"""`mify bench kernels` without a GPU: predictions are called so, what is wrong is not timed, the static table."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mify.bench import bench_kernels, static
from mify.bench.bench_kernels import CASES, run
from mify.bench.kernel_cases import OpCase
from mify.bench.kernel_ops import Prepared, decode, document_lengths, gqa
from mify.bench.roofline import Peaks, Point, draw
from mify.bench.row_ops import add_norm, linear_ce, norm, norm_fp8, rope, swiglu, swiglu_to_fp8
from mify.bench.rows import Row
from mify.bench.suite import Options, Targets
from mify.cli.app import app
from mify.kernels.cost import Cost

PEAKS = Peaks(bandwidth=1e10, flops=1e11, dtype="float32")


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mify.bench.roofline.measure_peaks", lambda *_, **__: PEAKS)


def _run(monkeypatch: pytest.MonkeyPatch, make: Any, **more: Any) -> list[Row]:
    monkeypatch.setattr(bench_kernels, "_GPU", {})
    monkeypatch.setattr(bench_kernels, "_CPU", {"tiny": OpCase("tiny", "cpu", make, {})})
    return run(Options(suite="kernels", rounds=1, quick=True, cases=("tiny",), **more))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU these are measured")
def test_without_a_gpu_its_cases_are_predicted_and_say_so() -> None:
    rows = run(Options(suite="kernels", cases=("decode-b1-1k", "norm")))
    assert rows
    assert {row.status for row in rows} == {"predicted"}
    assert all("nothing was run" in row.note for row in rows)
    (h200,) = [row for row in rows if row.case == "decode-b1-1k" and "H200" in row.impl]
    # 4.2 MB at the 4.2 TB/s that has been reached.
    assert h200.value is not None
    assert 0.95 < h200.value < 1.05
    assert h200.unit == "us"


@pytest.mark.parametrize(
    "make",
    [
        lambda: gqa("cpu", torch.float32, document_lengths(200, 40, 0), 4, 2, 16),
        lambda: gqa("cpu", torch.float32, [32, 32], 4, 4, 16),
        lambda: norm("cpu", torch.float32, 64, 48),
        lambda: add_norm("cpu", torch.float32, 64, 48),
        lambda: rope("cpu", torch.float32, 32, 4, 2, 16),
        lambda: swiglu("cpu", torch.float32, 64, 48),
        lambda: linear_ce("cpu", torch.float32, 40, 16, 101),
        lambda: decode("cpu", torch.float32, 3, 70, 4, 2, 16, False, 1),
        lambda: decode("cpu", torch.float32, 2, 40, 4, 2, 16, True, 1),
    ],
)
def test_every_op_agrees_with_its_rivals_and_is_timed(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    rows = _run(monkeypatch, make)
    parts = make()
    assert {row.metric.removesuffix(" time") for row in rows} == set(parts)
    for row in rows:
        assert row.value is not None, row.note
        assert row.value > 0
    assert {row.impl for row in rows} == {"mify", "torch"}
    assert all(row.ratio for row in rows if row.impl == "mify")


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("delayed", [False, True])
def test_fp8_is_checked_by_what_it_stands_for(monkeypatch: pytest.MonkeyPatch, transpose: bool, delayed: bool) -> None:
    for make in (
        lambda: norm_fp8("cpu", torch.bfloat16, 130, 48, transpose, delayed),
        lambda: swiglu_to_fp8("cpu", torch.bfloat16, 130, 48, transpose, delayed),
    ):
        rows = _run(monkeypatch, make)
        assert [row.impl for row in rows] == ["mify", "separate kernels"]
        assert rows[0].ratio is not None
        (wrong,) = make().values()
        call: Any = wrong.works["mify"]
        wrong.works = {"mify": lambda call=call: call()._replace(scale=torch.tensor(1.0))}
        (row,) = _run(monkeypatch, lambda wrong=wrong: {"forward": wrong})
        assert row.status == "fail"
        assert "wrong result" in row.note


def test_another_way_of_ours_is_set_against_the_rivals_not_against_us(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.randn(64)

    def takes(seconds: float) -> Any:
        def call() -> torch.Tensor:
            time.sleep(seconds)
            sum(range(int(seconds * 2e6)))
            return right

        return call

    works = {"mify": takes(0.002), "mify triton": takes(0.001), "fa3": takes(0.004)}
    rows = _run(monkeypatch, lambda: {"forward": Prepared(works, Cost(0, 256, 256), lambda: right)})
    assert [(row.impl, row.metric, row.rival) for row in rows] == [
        ("mify", "forward time", "fa3"),
        ("fa3", "forward time", None),
        ("mify triton", "forward time, own triton", "fa3"),
    ]


def test_a_case_that_raises_fails_alone_and_rows_are_kept_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(bench_kernels, "_GPU", {})
    good = OpCase("x", "cpu", lambda: norm("cpu", torch.float32, 8, 16), {})
    monkeypatch.setattr(bench_kernels, "_CPU", {"a": OpCase("x", "cpu", broken, {}), "b": good})
    kept: list[int] = []
    rows = run(Options(suite="kernels", rounds=1, quick=True, cases=("a", "b"), save=lambda r: kept.append(len(r))))
    assert (rows[0].case, rows[0].status) == ("a", "fail")
    assert "out of memory" in rows[0].note
    assert {row.case for row in rows[1:]} == {"b"}
    assert kept == [1, len(rows)]


def test_what_is_wrong_or_raises_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.randn(64)

    def raises() -> torch.Tensor:
        raise RuntimeError("no kernel image")

    def parts(ours: torch.Tensor) -> Any:
        works: dict[str, Any] = {
            "mify": lambda: ours, "off": lambda: right * 1.001, "nan": lambda: right * float("nan"), "raises": raises,
            "good": lambda: right.clone(),
        }  # fmt: skip
        return {"forward": Prepared(works, Cost(0, 256, 256), lambda: right, {"gone": "not installed"})}

    rows = {row.impl: row for row in _run(monkeypatch, lambda: parts(right))}
    assert rows["mify"].rival == "good"
    for name, why in (
        ("off", "wrong result"),
        ("nan", "wrong result"),
        ("raises", "no kernel image"),
        ("gone", "not installed"),
    ):
        assert rows[name].status == "not measured"
        assert rows[name].value is None
        assert why in rows[name].note
    (ours,) = _run(monkeypatch, lambda: parts(right + 1))
    assert (ours.impl, ours.status, ours.value) == ("mify", "fail", None)
    assert "wrong result" in ours.note


def test_targets_apply_by_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"kernels": {"ti*": {"* time": {"cpu": "ratio >= 1000", "source": "s"}}}}
    rows = _run(monkeypatch, lambda: norm("cpu", torch.float32, 8, 16), targets=Targets(table, "cpu"))
    assert [row.status for row in rows if row.impl == "mify"] == ["fail", "fail"]


@pytest.mark.parametrize("column", ["h100", "h200"])
def test_every_gpu_case_has_a_target_on_both_hoppers(column: str) -> None:
    targets = Targets.load(column)
    for case in bench_kernels._GPU:
        metrics = [
            f"{part} {what}"
            for part in bench_kernels._GPU[case].costs
            for what in ("time", "of limit", "time, absolute")
        ]
        assert any(targets.find("kernels", case, metric) for metric in metrics), case
    assert str(targets.find("kernels", "decode-b1-1k", "decode time, absolute")) == "value <= 5.5"
    assert str(targets.find("kernels", "gqa-packed-512-20-4", "forward time")) == "ratio >= 1.1"
    assert str(targets.find("kernels", "norm", "backward of limit")) == "value >= 90"
    assert str(targets.find("kernels", "norm-fp8-both", "forward time")) == "ratio >= 1.35"
    assert str(targets.find("kernels", "swiglu-fp8-one", "forward time")) == "ratio >= 1.5"
    assert str(targets.find("kernels", "gqa-long-8k-20-4", "backward time, own triton")) == "ratio >= 0.75"
    assert str(targets.find("kernels", "gqa-long-8k-20-4", "backward time")) == "ratio >= 0.98"


def test_the_static_table_of_cuda_kernels() -> None:
    if importlib.util.find_spec("mify._cuda") is None or static.cuobjdump() is None:
        pytest.skip("mify._cuda or cuobjdump is not here")
    rows = run(Options(suite="kernels", cases=("static-cuda",), targets=Targets.load("cpu")))
    assert len(rows) >= 16
    assert {row.status for row in rows} == {"pass"}
    note = next(row.note for row in rows if row.impl == "gqa_decode D128 bf16 8 heads sm_90")
    assert "registers" in note
    assert "16 HMMA" in note
    assert "99328 B shared" in note


def test_without_the_extension_the_static_table_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static.importlib.util, "find_spec", lambda _: None)
    (row,) = run(Options(suite="kernels", cases=("static-cuda",)))
    assert row.status == "not measured"
    assert "not built" in row.note


def test_triton_configurations_are_found() -> None:
    pytest.importorskip("triton")
    names = {case.name.split()[0] for case in bench_kernels.triton_cases()}
    assert {"gqa_decode", "glu"} <= names


def test_the_command_writes_rows_and_the_roofline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        bench_kernels, "_CPU", {"cpu-norm": OpCase("x", "cpu", lambda: norm("cpu", torch.float32, 64, 48), {})}
    )
    out = tmp_path / "k.json"
    result = CliRunner().invoke(
        app, ["bench", "kernels", "--case", "cpu-norm", "--rounds", "1", "--quick", "--json", str(out)]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert json.loads(out.read_text())["rows"][0]["case"] == "cpu-norm"
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_the_picture_needs_points(tmp_path: Path) -> None:
    bench_kernels._points.clear()
    bench_kernels._peaks.clear()
    assert not bench_kernels.picture(tmp_path / "x.png")
    pytest.importorskip("matplotlib")
    points = [
        Point("a", Cost(1000, 10, 10), 1e-6),
        Point("b", Cost(0, 100, 100), 1e-6),
        Point("c", Cost(0, 100, 100), 1e-6),
    ]
    assert draw(tmp_path / "x.png", PEAKS, points, "title")
    assert PEAKS.percent(Cost(0, 5, 5), 1e-9) == pytest.approx(100)


def test_cases_are_listed_with_what_they_measure() -> None:
    assert all(CASES.values())
    assert {"decode-b1-1k", "gqa-packed-1k-32-8", "linear-ce", "static-triton", "cpu-norm"} <= set(CASES)


def test_document_lengths_sum_and_are_reproducible() -> None:
    lengths = document_lengths(32768, 512, seed=0)
    assert sum(lengths) == 32768
    assert lengths == document_lengths(32768, 512, seed=0)
    assert 300 < sum(lengths) / len(lengths) < 900


def test_decode_rivals_are_asked_for_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the libraries' signatures: the page table and the lengths reach them, one query a sequence."""
    from mify.bench import kernel_ops

    asked: dict[str, dict[str, Any]] = {}

    def cached(q: Any, k: Any, v: Any, *, cache_seqlens: Any, block_table: Any = None, page_table: Any = None) -> Any:
        table = block_table if page_table is None else page_table
        asked["fa2" if page_table is None else "fa3"] = {"q": q.shape, "lengths": cache_seqlens, "table": table}
        return torch.zeros_like(q)

    def paged(q: Any, k: Any, v: Any, *, cu_seqlens_q: Any, max_seqlen_q: int, max_seqlen_k: int, seqused_k: Any,
              page_table: Any) -> Any:  # fmt: skip
        assert cu_seqlens_q.tolist() == list(range(q.shape[0] + 1))
        asked["fa4"] = {
            "q": q.shape,
            "lengths": seqused_k,
            "table": page_table,
            "longest": (max_seqlen_q, max_seqlen_k),
        }
        return torch.zeros_like(q), None

    there = {"flash_attn": cached, "flash_attn_interface": cached, "flash_attn.cute": paged}
    monkeypatch.setattr(kernel_ops, "optional", lambda module, name, absent, label: there.get(module))
    rivals = kernel_ops._decode_rivals({})
    q, k, v = torch.randn(3, 4, 16), torch.randn(6, 64, 2, 16), torch.randn(6, 64, 2, 16)
    lengths, table = torch.tensor([70, 64, 1]), torch.arange(6).view(3, 2)
    for name, rival in rivals.items():
        out = rival(q, k, v, lengths, table, torch.arange(4), 70)
        assert out.shape == q.shape, name
        assert asked[name]["lengths"] is lengths
        assert asked[name]["table"] is table
    assert asked["fa2"]["q"] == asked["fa3"]["q"] == (3, 1, 4, 16)
    assert asked["fa4"]["longest"] == (1, 70)
