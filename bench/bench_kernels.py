"""`mify bench kernels`: every kernel against its rivals and its roofline; without a GPU, what the compiler says of
them.

Correctness comes first: an implementation whose result differs from fp32's by more than its dtype explains is not
timed. The limit of every row is the roofline of `mify.kernels.cost` at the bandwidths and FLOP/s measured on this
device in this run; a row above 100% of it fails. What raises is a row that failed, with the reason; the other cases go
on.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

from mify.bench.kernel_cases import OpCase, cpu_cases, gpu_cases
from mify.bench.rows import PERCENT_OF_LIMIT, Row, rows_against_rivals
from mify.bench.suite import Options
from mify.errors import MifyError
from mify.hardware import GPU_SPECS

if TYPE_CHECKING:
    from mify.bench.kernel_ops import Prepared
    from mify.bench.roofline import Peaks, Point

SUITE = "kernels"
OURS = "mify"

_GPU, _CPU = gpu_cases(), cpu_cases()
CASES: dict[str, str] = {
    **{name: case.what for name, case in _GPU.items()},
    **{name: case.what for name, case in _CPU.items()},
    "static-cuda": "registers, spills and instructions of every CUDA kernel, as built",
    "static-triton": "registers, spills, shared memory and instructions of every Triton kernel, compiled for sm_90",
}

# What the last run measured, for the picture.
_points: list[Point] = []
_peaks: dict[str, Peaks] = {}


def run(options: Options) -> list[Row]:
    """Every selected case: timed where its device is here, else predicted and said so."""
    import torch

    torch.set_num_threads(options.threads)
    _points.clear()
    _peaks.clear()
    rows: list[Row] = []
    on_gpu = torch.cuda.is_available()
    for name, case in {**_GPU, **_CPU}.items():
        if not options.selected(name):
            continue
        options.say(f"measuring {name}")
        if case.device == "cuda" and not on_gpu:
            rows += _predicted(options, name, case)
            continue
        try:
            rows += _measured(options, name, case)
        except Exception as error:  # noqa: BLE001 -- one kernel that does not run must not cost the others' figures
            why = f"{type(error).__name__}: {error}"[:300]
            rows.append(Row.failed(SUITE, name, OURS, "time", "us", why=why, repro=options.repro(name)))
        options.save(rows)
        if on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
    if options.selected("static-cuda"):
        rows += _static_cuda(options)
    if options.selected("static-triton"):
        rows += _static_triton(options)
    return rows


def _measured(options: Options, name: str, case: OpCase) -> list[Row]:
    from mify.bench.roofline import measure_peaks

    if case.device not in _peaks:
        dtype = "bfloat16" if case.device == "cuda" else "float32"
        _peaks[case.device] = measure_peaks(case.device, dtype, rounds=3 if options.quick else 7)
    rows: list[Row] = []
    for part, prepared in case.make().items():
        rows += _part(options, name, case.device, part, prepared)
    return rows


def _part(options: Options, name: str, device: str, part: str, prepared: Prepared) -> list[Row]:
    from mify.bench.roofline import Point

    peaks, repro = _peaks[device], options.repro(name)
    wrong = _wrong(prepared)
    if OURS in wrong:
        return [Row.failed(SUITE, name, OURS, part, "us", why=wrong[OURS], repro=repro)]
    works = {label: work for label, work in prepared.works.items() if label not in wrong}
    seconds, how = _time(options, device, works, prepared, peaks)
    unit, factor = ("us", 1e6) if seconds[OURS] < 1e-3 else ("ms", 1e3)
    values = {label: s * factor for label, s in seconds.items()}
    floor = peaks.seconds(prepared.cost) * factor if device == "cuda" else None
    # "mify triton" is no rival but another way of ours, set against the same rivals.
    rivals = {label: value for label, value in values.items() if not label.startswith(OURS)}
    rows = rows_against_rivals(
        SUITE, name, f"{part} time", unit, values={OURS: values[OURS], **rivals}, repro=repro,
        target=options.targets.find(SUITE, name, f"{part} time"), limit=floor, note=how,
    )  # fmt: skip
    for label in values.keys() - rivals.keys() - {OURS}:
        metric = f"{part} time, own {label.removeprefix(OURS).strip()}"
        target = options.targets.find(SUITE, name, metric)
        rows += rows_against_rivals(
            SUITE, name, metric, unit, values={label: values[label], **rivals}, ours=label, repro=repro,
            target=target, limit=floor, note=how,
        )[:1]  # fmt: skip
    absolute = options.targets.find(SUITE, name, f"{part} time, absolute")
    if absolute is not None:
        metric = f"{part} time, absolute"
        rows.append(
            Row.measured(SUITE, name, OURS, metric, values[OURS], unit, repro=repro, target=absolute, limit=floor)
        )
    if device == "cuda":
        if prepared.memory_besides is not None:
            rows.append(_memory(options, name, prepared))
        limit = options.targets.find(SUITE, name, f"{part} of limit")
        percent = peaks.percent(prepared.cost, seconds[OURS])
        note = f"of {peaks.describe(prepared.cost)}"
        rows.append(
            Row.measured(
                SUITE, name, OURS, f"{part} of limit", percent, PERCENT_OF_LIMIT, repro=repro, target=limit, note=note
            )
        )
    rows += [
        Row.not_measured(SUITE, name, label, f"{part} time", unit, why=why, repro=repro)
        for label, why in {**prepared.absent, **wrong}.items()
    ]
    _points.append(Point(f"{name} {part}", prepared.cost, seconds[OURS]))
    return rows


def _memory(options: Options, name: str, prepared: Prepared) -> Row:
    """The most that a call holds at once, besides `memory_besides`."""
    import torch

    work = prepared.works["mify"]
    call = work if callable(work) else work[0]
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    extra = (torch.cuda.max_memory_allocated() - before - (prepared.memory_besides or 0)) / 2**30
    target = options.targets.find(SUITE, name, "extra memory")
    return Row.measured(SUITE, name, "mify", "extra memory", extra, "GiB", repro=options.repro(name), target=target)


def _time(
    options: Options, device: str, works: dict[str, Any], prepared: Prepared, peaks: Peaks
) -> tuple[dict[str, float], str]:
    from mify.bench.timing import l2_bytes, time_cpu, time_gpu

    if device != "cuda":
        calls = {name: work if callable(work) else work[0] for name, work in works.items()}
        timings = time_cpu(calls, rounds=options.rounds, min_seconds=0.02 if options.quick else 0.1)
        return {name: t.best for name, t in timings.items()}, "CPU time, best of the rounds"
    rounds = max(options.rounds, 5 if options.quick else 20)
    rotating = any(not callable(work) and len(work) > 1 for work in works.values())
    large = prepared.cost.bytes > 4 * l2_bytes()
    if large and not rotating:
        # Calls that move far more than L2 holds leave nothing there for the next: in a row they are timed in the
        # steady state, in which what one call has still to write back is paid for by the next.
        repeats = max(1, min(8, int(2e-3 / peaks.seconds(prepared.cost))))
        works = {name: [work] * repeats if callable(work) else work for name, work in works.items()}
    timings = time_gpu(works, rounds=rounds, flush_l2=not (rotating or large))
    return {name: t.median for name, t in timings.items()}, f"median, {timings[OURS].how}, L2 cold"


def _wrong(prepared: Prepared) -> dict[str, str]:
    """Implementation → why it is not timed: it raises, or its result is not the right one."""
    import torch

    seen = prepared.seen or (lambda result: result)
    exact = _flat(prepared.exact())
    wrong = {}
    for name, work in prepared.works.items():
        call = work if callable(work) else work[0]
        try:
            results = _flat(seen(call()))
        except Exception as error:  # noqa: BLE001 -- whatever a rival raises is the reason that its row gives
            wrong[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        for result, right in zip(results, exact, strict=True):
            if not result.is_floating_point():
                if not torch.equal(result, right):
                    wrong[name] = "wrong result: integers differ"
                continue
            # Four times the spacing of the result's dtype at the largest value: above rounding, below any mistake.
            size = right.abs().max().item() or 1.0
            allowed = (prepared.tolerance or max(4 * torch.finfo(result.dtype).eps, 1e-4)) * size
            error_size = (result.float() - right).abs().max().item()
            if not error_size <= allowed:
                wrong[name] = f"wrong result: off by {error_size:.3g} where {allowed:.3g} is allowed"
    return wrong


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _predicted(options: Options, name: str, case: OpCase) -> list[Row]:
    """The roofline on an H100 and an H200, at what kernels have been seen to reach there. Not a measurement."""
    rows = []
    for part, cost in case.costs.items():
        for column in ("h100", "h200"):
            spec = GPU_SPECS[column.upper()]
            seconds = cost.seconds(spec.reached_bf16, spec.reached_bandwidth)
            unit, factor = ("us", 1e6) if seconds < 1e-3 else ("ms", 1e3)
            note = "roofline at reachable bandwidth and FLOP/s, no launch counted; nothing was run"
            rows.append(
                Row.predicted(
                    SUITE, name, f"mify on {spec.name}", f"{part} time", seconds * factor, unit,
                    repro=options.repro(name), note=note,
                )
            )  # fmt: skip
    return rows


def _static_cuda(options: Options) -> list[Row]:
    from mify.bench import static

    repro = options.repro("static-cuda")
    try:
        reports = static.cuda_kernels()
    except MifyError as error:
        return [Row.not_measured(SUITE, "static-cuda", "mify", "spills", "B", why=error.problem, repro=repro)]
    rows = []
    for report in sorted(reports, key=lambda report: (report.architecture, report.readable)):
        tensor = ", ".join(f"{count} {name}" for name, count in sorted(report.tensor_core.items())) or "no tensor cores"
        shared = report.shared_bytes + static.dynamic_shared_bytes(report)
        note = f"{report.registers} registers, {shared} B shared, {tensor}, {report.async_copies} LDGSTS"
        impl = f"{_figures_of(report.readable)} sm_{report.architecture}"
        rows.append(_spills(options, "static-cuda", impl, report.spilled_bytes, note, repro))
    return rows


def _figures_of(readable: str) -> str:
    """ "gqa_decode_kernel 128 1 2" → "gqa_decode D128 fp8 16 heads"."""
    name, *figures = readable.split()
    if name != "gqa_decode_kernel" or len(figures) != 3:
        return readable
    return f"gqa_decode D{figures[0]} {('bf16', 'fp8')[int(figures[1])]} {8 * int(figures[2])} heads"


def _static_triton(options: Options) -> list[Row]:
    from mify.kernels import ahead

    repro = options.repro("static-triton")
    try:
        cases = triton_cases()
    except ImportError as error:
        return [Row.not_measured(SUITE, "static-triton", "mify", "spills", "B", why=str(error), repro=repro)]
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    rows = []
    for case in cases[: 4 if options.quick else None]:
        options.say(f"compiling {case.name}")
        try:
            built = ahead.build(case)
        except (RuntimeError, ValueError) as error:
            rows.append(Row.failed(SUITE, "static-triton", case.name, "spills", "B", why=str(error)[:200], repro=repro))
            continue
        used = ", ".join(f"{count} {name}" for name, count in sorted(built.instructions.items()) if count)
        note = f"{built.registers} registers, {built.shared} B shared, {used or 'no tensor cores'}"
        rows.append(_spills(options, "static-triton", case.name, built.stack + built.local, note, repro))
    return rows


def _spills(options: Options, case: str, impl: str, spilled: int, note: str, repro: str) -> Row:
    target = options.targets.find(SUITE, case, "spills")
    return Row.measured(SUITE, case, impl, "spills", float(spilled), "B", repro=repro, target=target, note=note)


def triton_cases() -> list[Any]:
    """Every shipped configuration of every `X_triton.py`, in the order of the folders."""
    import importlib
    import pkgutil

    import mify.kernels

    found = []
    for info in sorted(pkgutil.walk_packages(mify.kernels.__path__, "mify.kernels."), key=lambda info: info.name):
        if info.name.endswith("_triton"):
            module = importlib.import_module(info.name)
            found += list(module.cases()) if hasattr(module, "cases") else []
    return found


def picture(path: str | os.PathLike[str]) -> bool:
    """The roofline of the last run as PNG; False where nothing was timed or matplotlib is not installed."""
    from mify.bench.roofline import draw

    device = "cuda" if "cuda" in _peaks else "cpu"
    points = [point for point in _points if point.name.startswith("cpu-") == (device == "cpu")]
    if not points:
        return False
    return draw(path, _peaks[device], points, f"mify bench kernels, {device}")
