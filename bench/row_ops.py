"""What `mify bench kernels` times of the row-wise ops and the loss: inputs, ours, rivals, cost. One function an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mify import kernels
from mify.bench.kernel_ops import Parts, Prepared, differentiable, optional
from mify.bench.timing import Work, random_like_activations
from mify.kernels import row_cost
from mify.kernels.cost import Cost
from mify.kernels.mlp.glu_fp8 import swiglu_fp8
from mify.kernels.norm.norm_fp8 import rms_norm_fp8
from mify.kernels.quantize.fp8 import Fp8
from mify.kernels.quantize.quantize import quantize_fp8
from mify.kernels.rope.rotary import rope_angles

EPS = 1e-5
# Half a unit in the last place of E4M3, and the rounding to bf16 before it.
_FP8_TOLERANCE = 1 / 16 + 1 / 128


def norm(device: str, dtype: torch.dtype, tokens: int, features: int) -> Parts:
    """RMSNorm against torch's, torch.compile's, Liger's and QuACK's."""
    x = random_like_activations(tokens, features, dtype=dtype, device=device)
    weight = random_like_activations(features, dtype=dtype, device=device, seed=1)
    absent: dict[str, str] = {}

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (features,), weight, EPS)

    calls: dict[str, Callable[..., Any]] = {"mify": lambda x, w: kernels.rms_norm(x, w, EPS), "torch": plain}
    if device == "cuda":
        calls["torch.compile"] = torch.compile(plain)
        liger = optional("liger_kernel.ops.rms_norm", "LigerRMSNormFunction", absent, "liger")
        if liger is not None:
            calls["liger"] = lambda x, w: liger.apply(x, w, EPS, 0.0, "llama", False)
        quack = optional("quack.rmsnorm", "rmsnorm", absent, "quack")
        if quack is not None:
            calls["quack"] = lambda x, w: quack(x, w, eps=EPS)
    element = dtype.itemsize
    return differentiable(
        calls, (x, weight), row_cost.rms_norm_forward(tokens, features, element=element),
        row_cost.rms_norm_backward(tokens, features, element=element), absent, plain,
    )  # fmt: skip


def add_norm(device: str, dtype: torch.dtype, tokens: int, features: int) -> Parts:
    """RMSNorm of a sum, and the sum, against torch's, torch.compile's, Liger's and QuACK's."""
    x, residual = (random_like_activations(tokens, features, dtype=dtype, device=device, seed=i) for i in (0, 1))
    weight = random_like_activations(features, dtype=dtype, device=device, seed=2)
    absent: dict[str, str] = {}

    def plain(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, (features,), weight, EPS), total

    calls: dict[str, Callable[..., Any]] = {
        "mify": lambda x, r, w: kernels.add_rms_norm(x, r, w, EPS),
        "torch": plain,
    }
    if device == "cuda":
        calls["torch.compile"] = torch.compile(plain)
        liger = optional("liger_kernel.ops.fused_add_rms_norm", "LigerFusedAddRMSNormFunction", absent, "liger")
        if liger is not None:
            calls["liger"] = lambda x, r, w: liger.apply(x, r, w, EPS, 0.0, "llama", False)
        quack = optional("quack.rmsnorm", "rmsnorm", absent, "quack")
        if quack is not None:
            calls["quack"] = lambda x, r, w: quack(x, w, residual=r, eps=EPS, prenorm=True)
    element = dtype.itemsize
    return differentiable(
        calls, (x, residual, weight), row_cost.rms_norm_forward(tokens, features, element=element, residual=True),
        row_cost.rms_norm_backward(tokens, features, element=element, residual=True), absent, plain,
    )  # fmt: skip


def rope(device: str, dtype: torch.dtype, tokens: int, heads: int, kv_heads: int, dim: int) -> Parts:
    """Rotary positions of q and k in one pass, against torch, torch.compile and Liger."""
    q, k = (random_like_activations(tokens, n, dim, dtype=dtype, device=device, seed=n) for n in (heads, kv_heads))
    cos, sin = rope_angles(torch.arange(tokens, device=device), dim, 1e6)
    absent: dict[str, str] = {}

    def turn(x: Tensor) -> Tensor:
        a, b = x.float().chunk(2, -1)
        c, s = cos[:, None], sin[:, None]
        return torch.cat([a * c - b * s, b * c + a * s], -1).to(x.dtype)

    def plain(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return turn(q), turn(k)

    calls: dict[str, Callable[..., Any]] = {"mify": lambda q, k: kernels.apply_rope(q, k, cos, sin), "torch": plain}
    if device == "cuda":
        calls["torch.compile"] = torch.compile(plain)
        liger = optional("liger_kernel.ops.rope", "LigerRopeFunction", absent, "liger")
        if liger is not None:
            whole = tuple(torch.cat([x, x], -1)[None] for x in (cos, sin))

            def turned(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
                outs = liger.apply(q[None].transpose(1, 2), k[None].transpose(1, 2), *whole)
                return tuple(x.transpose(1, 2)[0] for x in outs)

            calls["liger"] = turned
    once = row_cost.rope(tokens, heads, kv_heads, dim, element=dtype.itemsize)
    return differentiable(calls, (q, k), once, once, absent, plain)


def swiglu(device: str, dtype: torch.dtype, tokens: int, features: int) -> Parts:
    """SwiGLU against torch, torch.compile and Liger."""
    gate, up = (random_like_activations(tokens, features, dtype=dtype, device=device, seed=i) for i in (0, 1))
    absent: dict[str, str] = {}

    def plain(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    calls: dict[str, Callable[..., Any]] = {"mify": lambda g, u: kernels.swiglu(g, u), "torch": plain}
    if device == "cuda":
        calls["torch.compile"] = torch.compile(plain)
        liger = optional("liger_kernel.ops.swiglu", "LigerSiLUMulFunction", absent, "liger")
        if liger is not None:
            calls["liger"] = lambda g, u: liger.apply(g, u)
    element = dtype.itemsize
    return differentiable(
        calls, (gate, up), row_cost.swiglu_forward(tokens, features, element=element),
        row_cost.swiglu_backward(tokens, features, element=element), absent, plain,
    )  # fmt: skip


def norm_fp8(device: str, dtype: torch.dtype, tokens: int, features: int, transpose: bool, delayed: bool) -> Parts:
    """RMSNorm with a residual that writes FP8, against the norm and a quantizing kernel behind it."""
    x, residual = (random_like_activations(tokens, features, dtype=dtype, device=device, seed=i) for i in (0, 1))
    weight = random_like_activations(features, dtype=dtype, device=device, seed=2)
    scale = torch.tensor(1 / 8, device=device) if delayed else None

    def fused() -> Fp8:
        return rms_norm_fp8(x, weight, EPS, residual=residual, scale=scale, transpose=transpose).quantized

    def apart() -> Fp8:
        y, _ = kernels.add_rms_norm(x, residual, weight, EPS)
        return quantize_fp8(y, scale=scale, transpose=transpose)

    def exact() -> tuple[Tensor, ...]:
        y = F.rms_norm((x + residual).float(), (features,), weight.float(), EPS)
        return _both(y, tokens) if transpose else (y,)

    whole = row_cost.rms_norm_forward(
        tokens, features, element=dtype.itemsize, residual=True, fp8_layouts=1 + transpose, delayed=delayed
    )
    return {"forward": _fp8(fused, apart, exact, whole)}


def swiglu_to_fp8(device: str, dtype: torch.dtype, tokens: int, features: int, transpose: bool, delayed: bool) -> Parts:
    """SwiGLU that writes FP8, against SwiGLU and a quantizing kernel behind it."""
    gate, up = (random_like_activations(tokens, features, dtype=dtype, device=device, seed=i) for i in (0, 1))
    scale = torch.tensor(1 / 8, device=device) if delayed else None

    def fused() -> Fp8:
        return swiglu_fp8(gate, up, scale=scale, transpose=transpose)

    def apart() -> Fp8:
        return quantize_fp8(kernels.swiglu(gate, up), scale=scale, transpose=transpose)

    def exact() -> tuple[Tensor, ...]:
        y = F.silu(gate.float()) * up.float()
        return _both(y, tokens) if transpose else (y,)

    whole = row_cost.swiglu_forward(
        tokens, features, element=dtype.itemsize, fp8_layouts=1 + transpose, delayed=delayed
    )
    return {"forward": _fp8(fused, apart, exact, whole)}


def _fp8(fused: Work, apart: Work, exact: Callable[[], Any], whole: Cost) -> Prepared:
    def seen(result: Any) -> tuple[Tensor, ...]:
        return (result.wide(),) if result.data_t is None else (result.wide(), result.wide_t())

    return Prepared({"mify": fused, "separate kernels": apart}, whole, exact, seen=seen, tolerance=_FP8_TOLERANCE)


def _both(y: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """What both layouts stand for: y, and its transpose with the tokens padded to a multiple of 128."""
    return y, F.pad(y, (0, 0, 0, -tokens % 128)).t()


def linear_ce(device: str, dtype: torch.dtype, rows: int, features: int, vocabulary: int) -> Parts:
    """Output matrix and loss, forward and backward together, against whole logits in torch, Liger's and QuACK's."""
    hidden = random_like_activations(rows, features, dtype=dtype, device=device)
    weight = (random_like_activations(vocabulary, features, dtype=torch.float32, device=device, seed=1) * 0.02).to(
        dtype
    )
    labels = torch.randint(vocabulary, (rows,), device=device, generator=torch.Generator(device).manual_seed(2))
    absent: dict[str, str] = {}

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy((hidden @ weight.t()).float(), labels, reduction="sum")

    calls: dict[str, Callable[..., Tensor]] = {
        "mify": lambda h, w: kernels.linear_cross_entropy(h, w, labels)[0],
        "torch": plain,
    }
    if device == "cuda":
        liger = optional(
            "liger_kernel.ops.fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction", absent, "liger"
        )
        if liger is not None:
            # Sums of the weight's gradient in fp32, as ours are.
            options = (None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32)
            calls["liger"] = lambda h, w: liger.apply(h, w, labels, *options)[0]
        quack = optional("quack.linear_cross_entropy", "chunked_linear_cross_entropy", absent, "quack")
        if quack is not None:
            calls["quack"] = lambda h, w: quack(h, w, labels, reduction="sum")

    def both(call: Callable[..., Tensor]) -> Work:
        leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight)]
        return lambda: torch.autograd.grad(call(*leaves), leaves)

    def exact() -> Any:
        leaves = [x.detach().float().requires_grad_() for x in (hidden, weight)]
        return torch.autograd.grad(plain(*leaves), leaves)

    works = {name: both(call) for name, call in calls.items()}
    element = dtype.itemsize
    whole = row_cost.linear_cross_entropy(rows, features, vocabulary, element=element, weight_grad=element)
    # The weight's gradient is summed in fp32, whatever its own dtype: that sum is what any chunked way must hold.
    return {"forward and backward": Prepared(dict(works), whole, exact, absent, weight.numel() * 4)}
