"""`mify bench kernels`: every kernel against its rivals and its roofline; without a GPU, what the compiler says of
them.

Correctness comes first: an implementation whose result differs from fp32's by more than its dtype explains is not
timed. The limit of every row is the roofline of `mify.kernels.cost` at the bandwidth and FLOP/s measured on this
device in this run; a row above 100% of it fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mify.bench.rows import PERCENT_OF_LIMIT, Row, rows_against_rivals
from mify.bench.suite import Options
from mify.errors import MifyError
from mify.hardware import GPU_SPECS
from mify.kernels.cost import Cost

if TYPE_CHECKING:
    from mify.bench.kernel_ops import Parts, Prepared
    from mify.bench.roofline import Peaks, Point

SUITE = "kernels"


@dataclass(frozen=True, slots=True)
class OpCase:
    """An op at a shape. `make(device)` prepares it there; `cost` predicts it where it cannot run."""

    what: str
    device: str
    make: Callable[[], Parts]
    costs: dict[str, Cost]


def _gpu_cases() -> dict[str, OpCase]:
    from mify.kernels import cost

    def gqa(what: str, tokens: int, mean: int, heads: int, kv_heads: int, equal: bool = False) -> OpCase:
        def lengths() -> list[int]:
            from mify.bench.kernel_ops import document_lengths

            return [mean] * (tokens // mean) if equal else document_lengths(tokens, mean, seed=0)

        def make() -> Parts:
            import torch

            from mify.bench import kernel_ops

            return kernel_ops.gqa("cuda", torch.bfloat16, lengths(), heads, kv_heads, 128)

        pairs = cost.visible_pairs([mean] * (tokens // mean))
        sizes = (pairs, tokens, heads, kv_heads, 128)
        costs = {"forward": cost.gqa_forward(*sizes), "backward": cost.gqa_backward(*sizes, recomputed=True)}
        return OpCase(what, "cuda", make, costs)

    def decode(batch: int, keys: int, fp8: bool) -> OpCase:
        copies = max(1, min(64, (1 << 29) // (batch * keys * 8 * 128 * (2 if fp8 else 4))))

        def make() -> Parts:
            import torch

            from mify.bench import kernel_ops

            return kernel_ops.decode("cuda", torch.bfloat16, batch, keys, 32, 8, 128, fp8, copies)

        one = cost.gqa_decode([keys] * batch, 32, 8, 128, kv_element=1 if fp8 else 2, page_size=64)
        kind = "FP8" if fp8 else "bf16"
        return OpCase(
            f"one token, {batch} x {keys:,} cached keys, 32/8/128, {kind}, paged", "cuda", make, {"decode": one}
        )

    def simple(what: str, function: str, arguments: tuple[int, ...], costs: dict[str, Cost]) -> OpCase:
        def make() -> Parts:
            import torch

            from mify.bench import kernel_ops

            parts: Parts = getattr(kernel_ops, function)("cuda", torch.bfloat16, *arguments)
            return parts

        return OpCase(what, "cuda", make, costs)

    def pack() -> Parts:
        from mify.bench import pack_ops

        return pack_ops.fim_pack("cuda", 512, 8192)

    rotation = cost.rope(32768, 20, 4, 128)
    packed = (512 * 8192, 512 * 8)
    return {
        "gqa-packed-512-20-4": gqa("32k tokens of documents of 512 on average, 20/4/128, causal", 32768, 512, 20, 4),
        "gqa-packed-2k-20-4": gqa("64k tokens of documents of 2k on average, 20/4/128, causal", 65536, 2048, 20, 4),
        "gqa-packed-1k-32-8": gqa("32k tokens of documents of 1k on average, 32/8/128, causal", 32768, 1024, 32, 8),
        "gqa-long-8k-20-4": gqa("4 documents of 8k, 20/4/128, causal", 32768, 8192, 20, 4, equal=True),
        "decode-b1-1k": decode(1, 1024, False),
        "decode-b1-32k": decode(1, 32768, False),
        "decode-b64-4k": decode(64, 4096, False),
        "decode-b256-2k": decode(256, 2048, False),
        "decode-b64-4k-fp8": decode(64, 4096, True),
        "norm": simple("RMSNorm, 32k x 2560", "norm", (32768, 2560), {
            "forward": cost.rms_norm_forward(32768, 2560), "backward": cost.rms_norm_backward(32768, 2560)}),
        "rope": simple("rotary positions of q and k, 32k x 20/4/128", "rope", (32768, 20, 4, 128), {
            "forward": rotation, "backward": rotation}),
        "swiglu": simple("SwiGLU, 32k x 6912", "swiglu", (32768, 6912), {
            "forward": cost.swiglu_forward(32768, 6912), "backward": cost.swiglu_backward(32768, 6912)}),
        "linear-ce": simple("output matrix and loss, 8192 x 2560 x 65,536", "linear_ce", (8192, 2560, 65_536), {
            "forward and backward": cost.linear_cross_entropy(8192, 2560, 65_536, weight_grad=cost.BF16)}),
        "fim-pack": OpCase("512 rows of 8192 from uint16 to a batch, widened, or gathered by spans", "cuda", pack, {
            "rows": cost.unpack_rows(*packed), "spans": cost.pack_spans(*packed, 512 * 20)}),
    }  # fmt: skip


def _cpu_cases() -> dict[str, OpCase]:
    def case(what: str, function: str, *arguments: Any) -> OpCase:
        def make() -> Parts:
            import torch

            from mify.bench import kernel_ops

            given = [a() if callable(a) else a for a in arguments]
            parts: Parts = getattr(kernel_ops, function)("cpu", torch.float32, *given)
            return parts

        return OpCase(what, "cpu", make, {})

    def pack() -> Parts:
        from mify.bench import pack_ops

        return pack_ops.fim_pack("cpu", 32, 8192)

    def documents() -> list[int]:
        from mify.bench.kernel_ops import document_lengths

        return document_lengths(4096, 256, seed=0)

    return {
        "cpu-gqa-packed": case(
            "4k tokens of documents of 256 on average, 4/2/64, fp32, CPU", "gqa", documents, 4, 2, 64
        ),
        "cpu-norm": case("RMSNorm, 4k x 768, fp32, CPU", "norm", 4096, 768),
        "cpu-rope": case("rotary positions, 4k x 6/2/128, fp32, CPU", "rope", 4096, 6, 2, 128),
        "cpu-swiglu": case("SwiGLU, 4k x 2048, fp32, CPU", "swiglu", 4096, 2048),
        "cpu-linear-ce": case("output matrix and loss, 4096 x 192 x 4096, fp32, CPU", "linear_ce", 4096, 192, 4096),
        "cpu-fim-pack": OpCase("32 rows of 8192 from uint16 to a batch, widened, or gathered, CPU", "cpu", pack, {}),
    }


_GPU, _CPU = _gpu_cases(), _cpu_cases()
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
        else:
            rows += _measured(options, name, case)
    if options.selected("static-cuda"):
        rows += _static_cuda(options)
    if options.selected("static-triton"):
        rows += _static_triton(options)
    return rows


def _measured(options: Options, name: str, case: OpCase) -> list[Row]:
    from mify.bench.roofline import Point, measure_peaks

    if case.device not in _peaks:
        dtype = "bfloat16" if case.device == "cuda" else "float32"
        _peaks[case.device] = measure_peaks(case.device, dtype, rounds=3 if options.quick else 7)
    peaks = _peaks[case.device]
    repro = options.repro(name)
    rows: list[Row] = []
    for part, prepared in case.make().items():
        wrong = _wrong(prepared)
        if "mify" in wrong:
            rows.append(Row.failed(SUITE, name, "mify", part, "us", why=wrong["mify"], repro=repro))
            continue
        works = {label: work for label, work in prepared.works.items() if label not in wrong}
        seconds, how = _time(options, case.device, works)
        unit, factor = ("us", 1e6) if seconds["mify"] < 1e-3 else ("ms", 1e3)
        floor = peaks.seconds(prepared.cost) * factor
        target = options.targets.find(SUITE, name, f"{part} time")
        rows += rows_against_rivals(
            SUITE, name, f"{part} time", unit, values={label: s * factor for label, s in seconds.items()}, repro=repro,
            target=target, limit=floor if case.device == "cuda" else None, note=how,
        )  # fmt: skip
        absolute = options.targets.find(SUITE, name, f"{part} time, absolute")
        if absolute is not None:
            rows.append(
                Row.measured(
                    SUITE, name, "mify", f"{part} time, absolute", seconds["mify"] * factor, unit, repro=repro,
                    target=absolute, limit=floor,
                )
            )  # fmt: skip
        if case.device == "cuda" and prepared.memory_besides is not None:
            rows.append(_memory(options, name, prepared))
        if case.device == "cuda":
            limit = options.targets.find(SUITE, name, f"{part} of limit")
            percent = peaks.percent(prepared.cost, seconds["mify"])
            rows.append(
                Row.measured(
                    SUITE, name, "mify", f"{part} of limit", percent, PERCENT_OF_LIMIT, repro=repro, target=limit
                )
            )
        rows += [
            Row.not_measured(SUITE, name, label, f"{part} time", unit, why=why, repro=repro)
            for label, why in {**prepared.absent, **wrong}.items()
        ]
        _points.append(Point(f"{name} {part}", prepared.cost, seconds["mify"]))
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


def _time(options: Options, device: str, works: dict[str, Any]) -> tuple[dict[str, float], str]:
    from mify.bench.timing import time_cpu, time_gpu

    if device == "cuda":
        rotating = any(not callable(work) and len(work) > 1 for work in works.values())
        timings = time_gpu(works, rounds=max(options.rounds, 5 if options.quick else 20), flush_l2=not rotating)
        return {name: t.median for name, t in timings.items()}, f"median, {timings['mify'].how}, L2 cold"
    calls = {name: work if callable(work) else work[0] for name, work in works.items()}
    timings = time_cpu(calls, rounds=options.rounds, min_seconds=0.02 if options.quick else 0.1)
    return {name: t.best for name, t in timings.items()}, "CPU time, best of the rounds"


def _wrong(prepared: Prepared) -> dict[str, str]:
    """Implementation → why it is not timed: it raises, or its result is not the right one."""
    import torch

    exact = _flat(prepared.exact())
    wrong = {}
    for name, work in prepared.works.items():
        call = work if callable(work) else work[0]
        try:
            results = _flat(call())
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
            allowed = max(4 * torch.finfo(result.dtype).eps, 1e-4) * size
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
