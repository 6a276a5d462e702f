"""The cases of `mify bench data` that make batches: on the host, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mify.bench import data_rivals as rivals
from mify.bench.data_inputs import CONTEXT, SENTINELS, Bench
from mify.bench.rows import PERCENT_OF_LIMIT
from mify.bench.timing import time_cpu
from mify.data.plan import PlanConfig


def host_pass(bench: Bench, case: str) -> None:
    rows = bench.some_rows(32)
    most = PlanConfig(CONTEXT, 0).segments + 1
    works: dict[str, Callable[[], object]] = {
        "mify": lambda: rows.to_batch(most),
        "numpy": lambda: rivals.widen_in_numpy(rows, most),
    }
    timings = time_cpu(works, rounds=bench.options.rounds)
    speeds = {name: rows.tokens.size / 1e6 / timing.best for name, timing in timings.items()}
    note = f"{len(rows.tokens)} rows of {CONTEXT}; 24 bytes written a token"
    bench.against(case, "throughput", "Mtok/s", speeds, ("numpy",), note)


def device_pass(bench: Bench, case: str) -> None:
    import torch

    metrics = ("rows, of copy bandwidth", "spans, of copy bandwidth")
    if not torch.cuda.is_available():
        for metric in metrics:
            bench.missing(case, metric, PERCENT_OF_LIMIT, "there is no GPU here")
        bench.missing(case, "share of a step", "%", "there is no GPU here")
        return
    from mify.bench.roofline import measure_peaks
    from mify.bench.timing import time_gpu
    from mify.config import model_config
    from mify.data.spans import make_spans
    from mify.kernels.packing import fim_pack_cost

    plan, bins, rows = bench.plan(0.25), bench.some_bins(512), bench.some_rows(512)
    most = PlanConfig(CONTEXT, 0).segments + 1
    arrays = (rows.tokens, rows.loss_bits, rows.segment_starts, rows.row_starts)
    moved = [torch.from_numpy(array).cuda() for array in arrays]
    whole = bench.shards
    buffer = torch.from_numpy(np.concatenate([np.asarray(tokens) for tokens in whole.tokens])).cuda()
    spans = make_spans(plan, bins, whole, context=CONTEXT)
    works, size = _device_works(moved, spans, buffer, CONTEXT, SENTINELS, most), rows.tokens.size
    seconds = {name: timing.median for name, timing in time_gpu(works, rounds=bench.options.rounds).items()}
    peaks = measure_peaks("cuda", "bfloat16")
    segments = len(rows.segment_starts)
    costs = {
        "rows": fim_pack_cost.unpack_rows(size, segments),
        "spans": fim_pack_cost.pack_spans(size, segments, len(spans.span_starts)),
    }
    note = f"{size / 1e6:.1f} M tokens"
    for metric, (name, work) in zip(metrics, costs.items(), strict=True):
        bench.row(case, metric, peaks.percent(work, seconds[name]), PERCENT_OF_LIMIT, note=note)
    shape = model_config("mify-2.5b")
    step = size * 6 * shape.num_parameters() / peaks.flops
    note = "of a mify-2.5b step of as many tokens, if its products ran at the FLOP/s measured here: shorter than any"
    bench.row(case, "share of a step", 100.0 * seconds["rows"] / step, "%", note=note)


def _device_works(
    rows: list[Any], spans: Any, buffer: Any, context: int, sentinels: tuple[int, ...], max_segments: int
) -> dict[str, Callable[[], object]]:
    """The two ways to a batch with everything on the device before."""
    import torch

    from mify.kernels.packing.fim_pack import pack_spans, unpack_rows

    names = ("patches", "span_source", "span_starts", "span_rows", "segment_starts", "segment_loss", "segment_rows")
    tables = [torch.from_numpy(getattr(spans, name)).to(buffer.device) for name in names]
    cu_length = len(rows[0]) * max_segments + 1
    options: dict[str, Any] = {"context": context, "pad_id": 1, "sentinels": list(sentinels), "cu_length": cu_length}
    return {
        "rows": lambda: unpack_rows(*rows, cu_length=cu_length),
        "spans": lambda: pack_spans(buffer, *tables, **options),
    }
