"""The backends of attention as candidates: each is really taken, and its time finds the shape again."""

from __future__ import annotations

import torch

from mify.bench.tune_attention import SHAPES, attention_shapes
from mify.bench.tune_kernels import knobs, tune
from mify.kernels import dispatch, measured
from mify.kernels.attention import gqa


def test_every_backend_that_runs_here_is_tried_and_taken() -> None:
    before = measured.load
    ran: list[str | None] = []
    found = [knob for knob in knobs("cpu", torch.float32, scale=64) if knob.kernel == "gqa"]
    assert [knob.cases for knob in found] == [(case,) for case, *_ in SHAPES]
    knob = found[0]
    assert {"cpu", "sdpa"} <= set(knob.candidates)
    assert "ref" not in knob.candidates

    def clock(calls):  # type: ignore[no-untyped-def]
        for call in calls.values():
            call()
            ran.append(dispatch.last_impl("gqa"))
        return dict.fromkeys(calls, 1e-6)

    device = dispatch.Device("cpu", name="toy")
    original = dispatch.describe
    dispatch.describe = lambda _: device
    try:
        seconds, left_out = tune(knob, "toy", "float32", clock)
    finally:
        dispatch.describe = original
    assert not left_out
    assert ran == list(seconds) == list(knob.candidates)
    assert measured.load is before


def test_an_entry_is_found_again_by_the_shape_it_was_measured_at() -> None:
    long = attention_shapes("cpu", torch.float32, scale=64)[-1]
    entry = measured.Entry("gqa", "toy", "float32", long.shape(), {"ref": 1.0, "sdpa": 2.0})
    device = dispatch.Device("cpu", name="toy")
    assert dispatch.order("gqa", device, torch.float32, long.shape(), [entry])[:2] == ("ref", "sdpa")
    q, k, _, _ = long.inputs()
    other = gqa.shape_of(q, k, 16, [0, *range(16, q.shape[0] + 1, 16)], True, 0, False)
    assert dispatch.order("gqa", device, torch.float32, other, [entry])[0] != "ref"
