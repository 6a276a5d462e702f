"""`python -m mify.bench.tune_kernels OUT.json [CASE …]`: the fastest launch of every Triton kernel on this GPU.

A kernel has candidates (tiles, warps, blocks; `mify.kernels.launch`, `gqa_triton.tiles`), and the first of them is used
where nothing was measured. Here each is run on the inputs of `mify bench kernels`, held against the first one's result,
and timed beside it. OUT.json gets a row a kernel, the best against the first, and under "measured" the times that
`python -m mify.kernels.measured OUT.json` takes over into the committed table. CASE names cases of the suite: only the
kernels that these cases run are tuned.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mify.bench.rows import Row, write_results
from mify.bench.tune_attention import attention_shapes, runnable
from mify.kernels import measured

Call = Callable[[], Any]


@dataclass(frozen=True)
class Knob:
    """A kernel with candidates.

    Args:
        kernel: its name in the table. shape: its sizes there. candidates: the first is what is used untuned.
        cases: patterns of the cases of `mify bench kernels` that run it. make: prepares a call of it.
    """

    kernel: str
    shape: Mapping[str, int]
    candidates: tuple[str, ...]
    cases: tuple[str, ...]
    make: Callable[[], Call]

    def runs_in(self, cases: Sequence[str]) -> bool:
        """Whether one of these cases runs the kernel."""
        return any(fnmatch.fnmatchcase(case, pattern) for case in cases for pattern in self.cases)


def knobs(device: str, dtype: Any, *, scale: int = 1) -> list[Knob]:
    """Every kernel with more than one candidate, at the sizes of mify-2.5b, its rows divided by `scale`."""
    from mify.kernels.launch import label
    from mify.kernels.loss import ce_triton
    from mify.kernels.mlp import glu_triton
    from mify.kernels.norm import norm_fp8_triton, norm_triton
    from mify.kernels.quantize import quantize_triton
    from mify.kernels.rope import rotary_triton

    features, ffn, classes, head = 2560, 6912, 65_536, 128
    block = 4096
    inputs = _Inputs(device, dtype, scale)
    rows = norm_triton.row_launches(block)
    found = [
        ("norm forward", features, rows, ("norm", "norm-residual"), inputs.norm),
        (
            "norm backward",
            features,
            norm_triton.backward_launches(block),
            ("norm", "norm-residual"),
            inputs.norm_backward,
        ),
        ("rope", head, rotary_triton.launches(head // 2), ("rope",), inputs.rope),
        ("glu forward", ffn, glu_triton.LAUNCHES, ("swiglu",), inputs.glu),
        ("glu backward", ffn, glu_triton.LAUNCHES, ("swiglu",), inputs.glu_backward),
        ("ce forward and gradient", classes, ce_triton.launches(classes), ("linear-ce",), inputs.ce),
    ]
    for blocks, transpose in quantize_triton.KINDS:
        name = f"{'both' if transpose else 'one'}{'' if blocks else '-delayed'}"
        tiles = quantize_triton.launches(quantize_triton.tile_rows(blocks, transpose))
        whole = norm_fp8_triton.TILE_LAUNCHES if transpose else rows
        kind = quantize_triton.kind
        found += [
            (
                kind("norm_fp8", blocks, transpose),
                features,
                whole,
                (f"norm-fp8-{name}",),
                inputs.fp8("norm", blocks, transpose),
            ),
            (
                kind("glu_fp8", blocks, transpose),
                ffn,
                tiles,
                (f"swiglu-fp8-{name}",),
                inputs.fp8("glu", blocks, transpose),
            ),
        ]
    result = [
        Knob(kernel, {"size": size}, tuple(label(candidate) for candidate in candidates), cases, make)
        for kernel, size, candidates, cases, make in found
    ]
    return [*result, *_attention(inputs, device, dtype), *_backends(inputs, device, dtype, scale)]


def _backends(inputs: _Inputs, device: str, dtype: Any, scale: int) -> list[Knob]:
    both = {"size": 2560, "transpose": 1}
    names = runnable("norm_fp8", device, dtype, both)
    return [Knob("norm_fp8", both, names, ("norm-fp8-both*",), inputs.norm_to_fp8)] + [
        Knob("gqa", attention.shape(), attention.backends(), (attention.case,), attention.make)
        for attention in attention_shapes(device, dtype, scale=scale)
    ]


def _attention(inputs: _Inputs, device: str, dtype: Any) -> list[Knob]:
    import torch

    from mify.kernels.attention import gqa_triton

    capability = torch.cuda.get_device_capability() if device == "cuda" else (9, 0)
    found = []
    for kernel, backward, deterministic in (
        ("forward", False, False), ("keys and dq", True, False), ("keys", True, True), ("queries", True, True),
    ):  # fmt: skip
        names = tuple(str(tiles) for tiles in gqa_triton.tiles(kernel, 128, dtype, capability))
        make = inputs.attention(backward, deterministic)
        found.append(Knob(f"gqa {kernel}", {"head_dim": 128}, names, ("gqa-packed-*", "gqa-long-*"), make))
    return found


class _Inputs:
    """Calls of the kernels on random inputs, made when they are needed."""

    def __init__(self, device: str, dtype: Any, scale: int) -> None:
        self.device, self.dtype, self.tokens = device, dtype, max(2, 32_768 // scale)
        self.scale = scale

    def random(self, *shape: int, seed: int = 0) -> Any:
        from mify.bench.timing import random_like_activations

        return random_like_activations(*shape, dtype=self.dtype, device=self.device, seed=seed)

    def norm(self) -> Call:
        from mify.kernels.norm import norm_triton

        x, weight = self.random(self.tokens, 2560), self.random(2560, seed=1)
        return lambda: norm_triton.forward(x, None, weight, 1e-5)[0]

    def norm_backward(self) -> Call:
        from mify.kernels.norm import norm_triton

        x, grad, weight = (
            self.random(self.tokens, 2560),
            self.random(self.tokens, 2560, seed=2),
            self.random(2560, seed=1),
        )
        inverse = norm_triton.forward(x, None, weight, 1e-5)[2]
        return lambda: norm_triton.backward(grad, None, x, weight, inverse)

    def rope(self) -> Call:
        import torch

        from mify.kernels.rope import rotary_triton
        from mify.kernels.rope.rotary import rope_angles

        q, k = self.random(self.tokens, 20, 128), self.random(self.tokens, 4, 128, seed=1)
        cos, sin = rope_angles(torch.arange(self.tokens, device=self.device), 128, 1e6)
        return lambda: rotary_triton.rotate(q, k, cos, sin, False)

    def glu(self) -> Call:
        from mify.kernels.mlp import glu_triton

        gate, up = (self.random(self.tokens, 6912, seed=i) for i in (0, 1))
        return lambda: glu_triton.forward(gate, up)

    def glu_backward(self) -> Call:
        from mify.kernels.mlp import glu_triton

        grad, gate, up = (self.random(self.tokens, 6912, seed=i) for i in (0, 1, 2))
        return lambda: glu_triton.backward(grad, gate, up)

    def ce(self) -> Call:
        import torch

        from mify.kernels.loss import ce_triton

        rows = max(2, self.tokens // 8)
        logits, labels = self.random(rows, 65_536), torch.arange(rows, device=self.device)

        def call() -> Any:
            own = logits.clone()  # it works in place; every candidate pays for the copy
            return ce_triton.loss_and_gradient_(own, labels, -100, 0.0, 0.0, True), own

        return call

    def fp8(self, op: str, blocks: bool, transpose: bool) -> Callable[[], Call]:
        def make() -> Call:
            import torch

            from mify.kernels.mlp import glu_fp8_triton
            from mify.kernels.norm import norm_fp8_triton

            scale = None if blocks else torch.tensor(1 / 8, device=self.device)
            if op == "glu":
                gate, up = (self.random(self.tokens, 6912, seed=i) for i in (0, 1))
                return lambda: glu_fp8_triton.forward(gate, up, scale, transpose)[0]
            x, residual, weight = (
                self.random(self.tokens, 2560),
                self.random(self.tokens, 2560, seed=2),
                self.random(2560),
            )
            return lambda: norm_fp8_triton.forward(x, residual, weight, 1e-5, scale, transpose)[0][0]

        return make

    def norm_to_fp8(self) -> Call:
        from mify.kernels.norm.norm_fp8 import rms_norm_fp8

        x, residual, weight = self.random(self.tokens, 2560), self.random(self.tokens, 2560, seed=2), self.random(2560)

        def call() -> Any:
            got = rms_norm_fp8(x, weight, residual=residual)
            # Not the FP8 data: where 1/rms is rounded otherwise a value may be a whole step of E4M3 off.
            return got.quantized.scale, got.quantized.scale_t, got.total, got.inverse

        return call

    def attention(self, backward: bool, deterministic: bool) -> Callable[[], Call]:
        def make() -> Call:
            import torch

            from mify.bench.kernel_cases import document_lengths
            from mify.kernels import gqa_attention

            lengths = document_lengths(self.tokens, max(16, 1024 // self.scale), seed=0)
            heads, kv_heads = max(2, 32 // self.scale), max(1, 8 // self.scale)
            bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=self.device)
            q, k, v = (
                self.random(self.tokens, n, 128, seed=n).requires_grad_(backward) for n in (heads, kv_heads, kv_heads)
            )

            def forward() -> Any:
                return gqa_attention(q, k, v, bounds, max(lengths), deterministic=deterministic, impl="triton")

            if not backward:
                return forward
            out = forward()
            grad = torch.randn_like(out)
            return lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)

        return make


@contextlib.contextmanager
def only(knob: Knob, candidate: str, device: str, dtype: str) -> Iterator[None]:
    """Within it the table holds this one entry, so the kernel takes this candidate."""
    entry = measured.Entry(knob.kernel, device, dtype, knob.shape, {candidate: 1.0})
    before = measured.load
    measured.load = lambda: (entry,)  # type: ignore[assignment]
    try:
        yield
    finally:
        measured.load = before


def tune(
    knob: Knob, device: str, dtype: str, clock: Callable[[Mapping[str, Call]], Mapping[str, float]]
) -> tuple[dict[str, float], dict[str, str]]:
    """Candidate → seconds, and candidate → why it was left out. `clock` times the calls beside each other."""
    call = knob.make()

    def held(candidate: str) -> Call:
        def run() -> Any:
            with only(knob, candidate, device, dtype):
                return call()

        return run

    calls, left_out, first = {}, {}, None
    for candidate in knob.candidates:
        work = held(candidate)
        try:
            result = _flat(work())
        except Exception as error:  # noqa: BLE001 -- a candidate that needs too much is no candidate, and said so
            left_out[candidate] = f"{type(error).__name__}: {error}"[:120]
            continue
        first = first or result
        wrong = _difference(result, first)
        if wrong:
            left_out[candidate] = wrong
            continue
        calls[candidate] = work
    return dict(clock(calls)) if calls else {}, left_out


def _flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _difference(result: Sequence[Any], first: Sequence[Any]) -> str:
    """In words, where a candidate's result is another one than another order of additions explains."""
    import torch

    for got, right in zip(result, first, strict=True):
        size = right.float().abs().max().item() or 1.0
        off = (got.float() - right.float()).abs().max().item()
        if not off <= max(8 * torch.finfo(torch.bfloat16).eps, 1e-4) * size:
            return f"another result: off by {off:.3g} of {size:.3g}"
    return ""


def results(
    knob: Knob, seconds: Mapping[str, float], left_out: Mapping[str, str], device: str, dtype: str, source: str
) -> tuple[Row, measured.Entry | None]:
    """The row of a kernel, and its entry for the table."""
    repro = f"python -m mify.bench.tune_kernels OUT.json {knob.cases[0]}"
    case, first = f"tune {knob.kernel}", knob.candidates[0]
    if not seconds:
        why = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        return Row.failed("kernels", case, first, "time", "us", why=why, repro=repro), None
    best = min(seconds, key=lambda name: seconds[name])
    micro = {name: round(time * 1e6, 3) for name, time in seconds.items()}
    note = "; ".join([f"{name}: {time:g}" for name, time in micro.items()] + [f"{n}: {w}" for n, w in left_out.items()])
    row = Row.measured(
        "kernels", case, best, "time", micro[best], "us", rival=f"{first}, the first" if first in micro else None,
        rival_value=micro.get(first), repro=repro, note=note,
    )  # fmt: skip
    return row, measured.Entry(knob.kernel, device, dtype, knob.shape, micro, source)


def main(arguments: Sequence[str]) -> int:
    import torch

    from mify.bench.suite import machine
    from mify.bench.timing import time_gpu

    if not arguments:
        print("usage: python -m mify.bench.tune_kernels OUT.json [CASE ...]", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("no GPU: nothing to tune", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name()
    about = machine()
    source = f"{about['commit'][:12]}, torch {about['versions'].get('torch')}, triton {about['versions'].get('triton')}"

    def clock(calls: Mapping[str, Call]) -> Mapping[str, float]:
        return {name: timing.median for name, timing in time_gpu(calls, rounds=15).items()}

    rows: list[Row] = []
    entries: list[measured.Entry] = []
    for knob in knobs("cuda", torch.bfloat16):
        if len(arguments) > 1 and not knob.runs_in(arguments[1:]):
            continue
        row, entry = results(knob, *tune(knob, device, "bfloat16", clock), device, "bfloat16", source)
        rows.append(row)
        entries += [entry] if entry is not None else []
        print(row.case, row.impl, row.value, row.note, flush=True)
        write(Path(arguments[0]), rows, entries, about)
        torch.cuda.empty_cache()
    return 0


def write(path: Path, rows: Sequence[Row], entries: Sequence[measured.Entry], about: Mapping[str, Any]) -> None:
    """The rows as every suite writes them, and the entries beside them."""
    from mify.files import read_json, write_json

    write_results(path, rows, machine=about)
    write_json(path, read_json(path) | {"measured": [json.loads(json.dumps(asdict(entry))) for entry in entries]})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
