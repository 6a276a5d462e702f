"""`mify bench fp8`: mify-2.5b's linear layers in FP8 against bf16, the products alone and with what quantizes for them.

Without a GPU nothing is timed: those rows read `not measured`, beside what the cost model predicts; the CPU's
emulation, by which recipes are tried anywhere, is held against fp64.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from mify.bench.rows import PERCENT_OF_LIMIT, Row, rows_against_rivals
from mify.bench.suite import Options
from mify.config import model_config
from mify.hardware import GPU_SPECS
from mify.kernels.gemm import gemm_cost
from mify.kernels.gemm.gemm_cost import Linear, Speed

if TYPE_CHECKING:
    import torch

SUITE, OURS = "fp8", "mify block"
TOKENS = 8192
_MODEL = model_config("mify-2.5b")
_LINEARS = {layer.name: layer for layer in gemm_cost.linears(_MODEL, TOKENS) if layer.name not in ("v_proj", "up_proj")}
# FP8 products that were seen (cuBLAS on an H100 and an H200), for predictions alone.
_REACHED = {"h100": 1403e12, "h200": 1453e12}
IMPLEMENTATIONS = ("mify block", "mify per tensor", "deep_gemm")
LAYER = ("mify block", "mify delayed", "mify current", "te block", "te delayed", "te current")
CASES: dict[str, str] = {
    **{name: f"{one.tokens} x {one.n} x {one.k}: forward, dgrad and wgrad alone" for name, one in _LINEARS.items()},
    "layer": "all linear layers of a decoder layer with norms and SwiGLU, forward and backward, quantization included",
    "bytes": "what quantizing for a layer must move, fused and not: counted, not measured",
    "emulation": "the emulation's products against fp64, beside plain fp32's",
}


def run(options: Options) -> list[Row]:
    """Every selected case."""
    import torch

    torch.set_num_threads(options.threads)
    on_gpu = torch.cuda.is_available()
    rows: list[Row] = []
    for name, linear in _LINEARS.items():
        if options.selected(name):
            options.say(f"measuring {name}")
            rows += _products(options, name, linear) if on_gpu else _unmeasured_products(options, name)
            options.save(rows)
            _free()
    if options.selected("layer"):
        options.say("measuring layer")
        rows += _layer(options) if on_gpu else _unmeasured_layer(options)
        options.save(rows)
    if options.selected("bytes"):
        rows += _bytes(options)
    if options.selected("emulation"):
        options.say("checking the emulation")
        rows += _emulation(options)
    return rows


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- on a GPU


def _products(options: Options, name: str, linear: Linear) -> list[Row]:
    from mify.bench import fp8_ops
    from mify.bench.timing import time_gpu

    rows: list[Row] = []
    for part, (m, n, k) in fp8_ops.product_sizes(linear).items():
        metric, repro = f"{part} time", options.repro(name)
        calls, absent = fp8_ops.products(m, n, k)
        wrong = _wrong({name: call for name, call in calls.items() if name.startswith("mify")}, m, n, k)
        absent |= wrong
        works = {impl: call for impl, call in calls.items() if impl not in wrong}
        times = {impl: t.median * 1e6 for impl, t in time_gpu(works, rounds=5 if options.quick else 20).items()}
        ours = [impl for impl in times if impl.startswith("mify")]
        for impl in ours:
            for rival in ("bf16", "deep_gemm"):
                if rival not in times:
                    continue
                named = f"{metric}, over {rival}"
                target = options.targets.find(SUITE, name, named)
                rows += rows_against_rivals(
                    SUITE, name, named, "us", values={impl: times[impl], rival: times[rival]}, ours=impl, repro=repro,
                    target=target, note="median, L2 cold",
                )[:1]  # fmt: skip
            share = 100 * 2 * m * n * k / (times[impl] * 1e-6) / GPU_SPECS["H200"].fp8_flops
            note = "of the data sheet's 1,979 TFLOP/s"
            rows.append(
                Row.measured(SUITE, name, impl, f"{part} of limit", share, PERCENT_OF_LIMIT, repro=repro, note=note)
            )
        rows += [
            Row.not_measured(SUITE, name, impl, metric, "us", why=why, repro=repro) for impl, why in absent.items()
        ]
    return rows


def _wrong(calls: dict[str, Any], m: int, n: int, k: int) -> dict[str, str]:
    """Implementation → how its result differs from the emulation's on the same operands."""
    from mify.bench import fp8_ops
    from mify.kernels.gemm.gemm import fp8_matmul

    wrong = {}
    for impl, call in calls.items():
        a, b = fp8_ops.operands(m, n, k, blocks=impl == "mify block", device="cuda")
        right = fp8_matmul(a.data, a.scale, b.data, b.scale, impl="ref").float()
        error = float((call().float() - right).norm() / right.norm())
        if not error < 0.005:  # bf16's rounding is 0.0017 of the norm
            wrong[impl] = f"wrong result: {error:.2%} of the norm away from the emulation"
    return wrong


def _layer(options: Options) -> list[Row]:
    from mify.bench import fp8_ops
    from mify.bench.timing import time_gpu

    repro = options.repro("layer")
    calls, absent = fp8_ops.one_layer(_MODEL, TOKENS)
    metric = "forward and backward time"
    rows = [Row.not_measured(SUITE, "layer", impl, metric, "us", why=why, repro=repro) for impl, why in absent.items()]
    if "bf16" not in calls:
        return rows
    times = {impl: t.median * 1e6 for impl, t in time_gpu(calls, rounds=5 if options.quick else 20).items()}
    best = min((impl for impl in times if impl.startswith("mify")), key=times.__getitem__, default=None)
    for impl in times:
        if impl == "bf16":
            continue
        target = options.targets.find(SUITE, "layer", metric) if impl == best else None
        rows.append(
            Row.measured(
                SUITE, "layer", impl, metric, times[impl], "us", repro=repro, rival="bf16", rival_value=times["bf16"],
                target=target, note="attention left out; norms, SwiGLU and their backward included in both",
            )
        )  # fmt: skip
    return rows


# ---- without one


def _unmeasured_products(options: Options, name: str) -> list[Row]:
    return [
        Row.not_measured(
            SUITE, name, impl, f"{part} time, over bf16", "us", why="no GPU", repro=options.repro(name),
            target=options.targets.find(SUITE, name, f"{part} time, over bf16"),
        )
        for part in ("forward", "dgrad", "wgrad")
        for impl in IMPLEMENTATIONS
    ]  # fmt: skip


def _unmeasured_layer(options: Options) -> list[Row]:
    repro = options.repro("layer")
    metric = "forward and backward time"
    target = options.targets.find(SUITE, "layer", metric)
    rows = [
        Row.not_measured(SUITE, "layer", impl, metric, "us", why="no GPU", repro=repro, target=target) for impl in LAYER
    ]
    for column, fp8 in _REACHED.items():
        spec = GPU_SPECS[column.upper()]
        speed = Speed(spec.reached_bf16, fp8, spec.reached_bandwidth)
        for how, fused, weights in (
            ("not fused", False, True),
            ("fused", True, True),
            ("fused, weights kept from an earlier micro-batch", True, False),
        ):
            value = gemm_cost.layer_speedup(_MODEL, TOKENS, speed, fused=fused, weights=weights)
            rows.append(
                Row.predicted(
                    SUITE, "layer", f"mify block on {spec.name}", f"times bf16, {how}", value, "x", repro=repro,
                    note=f"products at {fp8 / 1e12:,.0f} against {spec.reached_bf16 / 1e12:,.0f} TFLOP/s, bytes at "
                    f"{spec.reached_bandwidth / 1e12:.2f} TB/s; nothing was run",
                )
            )  # fmt: skip
    return rows


def _bytes(options: Options) -> list[Row]:
    repro = options.repro("bytes")
    rows = []
    for recipe in ("block", "delayed"):
        for fused in (True, False):
            parts = gemm_cost.layer_quantization(_MODEL, TOKENS, fused=fused, delayed=recipe == "delayed")
            for part, cost in parts.items():
                rows.append(
                    Row.predicted(
                        SUITE, "bytes", f"{recipe}, {'fused' if fused else 'not fused'}", part, cost.bytes / 1e6, "MB",
                        repro=repro, note=f"one layer of mify-2.5b, {TOKENS:,} tokens, beyond what bf16 moves",
                    )
                )  # fmt: skip
    return rows


def _emulation(options: Options) -> list[Row]:
    """The three products of each shape on fewer tokens: how much larger the emulation's error is than plain fp32's."""
    import torch

    from mify.kernels.gemm.gemm import fp8_matmul
    from mify.kernels.quantize.quantize import quantize_fp8

    tokens = 64 if options.quick else 256
    generator = torch.Generator().manual_seed(options.seed)
    repro = options.repro("emulation")
    rows = []
    for name in ("q_proj",) if options.quick else ("q_proj", "gate_proj", "down_proj"):
        n, k = _LINEARS[name].n, _LINEARS[name].k
        x, w = torch.randn(tokens, k, generator=generator), torch.randn(n, k, generator=generator) * k**-0.5
        dy = torch.randn(tokens, n, generator=generator)
        for recipe in ("block", "per tensor"):
            scales = [None if recipe == "block" else v.abs().max() / 448 for v in (x, w, dy)]
            qx, qw, qdy = (quantize_fp8(v, scale=s) for v, s in zip((x, w, dy), scales, strict=True))
            parts = {
                "forward": (qx.data, qx.scale, qw.data, qw.scale, x, w),
                "dgrad": (qdy.data, qdy.scale, qw.data_t, qw.scale_t, dy, w.t()),
                "wgrad": (qdy.data_t, qdy.scale_t, qx.data_t, qx.scale_t, dy.t(), x.t()),
            }
            for part, (a, scale_a, b, scale_b, wide_a, wide_b) in parts.items():
                assert a is not None
                assert b is not None
                assert scale_a is not None
                assert scale_b is not None
                got = fp8_matmul(a, scale_a, b, scale_b, dtype=torch.float32, impl="ref").double()
                ours, plain, exact = got, *_in_both(a, scale_a, b, scale_b)
                ratio = float((ours - exact).abs().max() / (plain - exact).abs().max())
                target = options.targets.find(SUITE, "emulation", f"{part} error, over plain fp32's")
                whole = wide_a.double() @ wide_b.double().t()
                away = float((got - whole).norm() / whole.norm())
                rows.append(
                    Row.measured(
                        SUITE, "emulation", f"{name}, {recipe}", f"{part} error, over plain fp32's", ratio, "x",
                        repro=repro, target=target,
                        note=f"{tokens} tokens; quantizing itself costs {away:.2%} of the norm",
                    )
                )  # fmt: skip
    return rows


def _in_both(
    a: torch.Tensor, scale_a: torch.Tensor, b: torch.Tensor, scale_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The product of the widened operands in plain fp32, and in fp64."""

    def wide(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        scale = scale.double()
        if scale.dim():
            scale = scale.repeat_interleave(128, 1)[:, : x.shape[1]]
        return x.double() * scale

    wide_a, wide_b = wide(a, scale_a), wide(b, scale_b)
    return (wide_a.float() @ wide_b.float().t()).double(), wide_a @ wide_b.t()
