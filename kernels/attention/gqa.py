"""Grouped-query attention over packed documents.

For query i and key j of one document, out_i = Σ_j softmax_j(scale · q_i·k_j) v_j over the keys that i may see: those
with j ≤ i when causal, and with |i − j| < window when a window is set. Query head h reads key/value head
h // (Hq / Hkv) (Ainslie et al. 2023, arXiv 2305.13245). Documents never see each other: `cu_seqlens` bounds them.

Statistics and sums are fp32 (fp64 for fp64 inputs). The saved normalizers are lse_i = log Σ_j exp(scale · q_i·k_j).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from mify.kernels import checks, dispatch, launch, measured

from . import gqa_cpu, gqa_cudnn, gqa_fa2, gqa_fa3, gqa_fa4, gqa_libraries, gqa_ref, gqa_sdpa, gqa_torch_flash

# Documents of this mean length and longer go to a library: they are at the limit there (cuDNN 644, flash-attn 3 667 TF
# forward at 8k on Hopper), while at 512 to 2k, where whole tiles are rare, our own kernel aims to be ahead. Nothing of
# ours was measured on a GPU; the border is the middle of both ranges, until kernels/measured.json says better.
LONG_DOCUMENTS = 4096


def _prefer(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> tuple[str, ...]:
    """The order where nothing was measured on this GPU."""
    if device.kind != "cuda":
        return ()
    hopper = device.capability[0] == 9
    if not shape["eager"]:
        # In a compiled graph a library runs forward twice: see gqa_libraries.recomputed_gradients.
        return ("triton",)
    if shape["mean_length"] < LONG_DOCUMENTS:
        return ("triton", "fa3", "fa4", "fa2", "torch_flash")
    if hopper:
        # torch's own is flash-attn 2, about 330 TF where cuDNN has 630: behind a Triton kernel as well.
        return ("cudnn", "fa3", "fa4", "triton", "fa2", "torch_flash")
    if device.capability[0] > 9:
        return ("cudnn", "fa4", "fa2", "torch_flash", "triton")
    return ("fa2", "torch_flash", "cudnn", "triton")


def _sdpa_refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    if device.kind != "cpu":
        return "it is torch's flash attention for CPUs"
    if shape["window"]:
        return "it has no sliding window"
    if shape["tokens"] == 0:
        return "there are no tokens"
    return ""


def _triton_refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    reason = dispatch.triton_refuses(device, dtype, shape)
    if not reason and (shape["head_dim"] > 256 or shape["head_dim"] % 8):
        return f"its head dimension must be a multiple of 8 up to 256, not {shape['head_dim']}"
    return reason


dispatch.register(
    "gqa",
    dispatch.Backend("cpu", gqa_cpu.refuses),
    dispatch.Backend("triton", _triton_refuses),
    dispatch.Backend("cudnn", gqa_cudnn.refuses),
    dispatch.Backend("fa3", gqa_fa3.refuses),
    dispatch.Backend("fa4", gqa_fa4.refuses),
    dispatch.Backend("fa2", gqa_fa2.refuses),
    dispatch.Backend("torch_flash", gqa_torch_flash.refuses),
    dispatch.Backend("sdpa", _sdpa_refuses),
    dispatch.Backend("ref", lambda *_: ""),
    prefer=_prefer,
    like=measured.Like(
        equal=("query_heads", "kv_heads", "head_dim", "window", "causal", "deterministic", "equal_lengths", "eager"),
        near=("tokens", "mean_length"),
    ),
)


@torch.library.custom_op("mify::gqa_attention", mutates_args=())
def _op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    causal: bool,
    window: int,
    scale: float,
    deterministic: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    bounds = checks.segment_bounds(cu_seqlens, q.shape[0], max_seqlen)
    shape = shape_of(q, k, max_seqlen, bounds, causal, window, deterministic)
    backend = _backend(impl, q, shape)
    if backend == "cpu":
        return gqa_cpu.forward(q, k, v, cu_seqlens, causal, window, scale)
    if backend == "triton":
        from . import gqa_triton

        with launch.on(q):
            return gqa_triton.forward(q, k, v, cu_seqlens, causal, window, scale, _persistent(shape))
    if backend == "sdpa":
        return gqa_sdpa.forward(q, k, v, bounds, causal, scale)
    if backend in gqa_libraries.modules():
        docs = gqa_libraries.documents(cu_seqlens, bounds, max_seqlen)
        out = gqa_libraries.attention(backend, q, k, v, docs, causal, window, scale, deterministic)
        return out.contiguous(), q.new_full((q.shape[1], q.shape[0]), math.nan, dtype=torch.float32)
    return gqa_ref.forward(q, k, v, bounds, causal, window, scale)


@_op.register_fake
def _(q, k, v, cu_seqlens, max_seqlen, causal, window, scale, deterministic, impl):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=_wide(q))


@torch.library.custom_op("mify::gqa_attention_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    causal: bool,
    window: int,
    scale: float,
    deterministic: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    bounds = checks.segment_bounds(cu_seqlens, q.shape[0], max_seqlen)
    shape = shape_of(q, k, max_seqlen, bounds, causal, window, deterministic)
    backend = _backend(impl, q, shape)
    if backend == "cpu":
        return gqa_cpu.backward(grad, q, k, v, lse, cu_seqlens, causal, window, scale)
    if backend == "triton":
        from . import gqa_triton

        with launch.on(q):
            return gqa_triton.backward(
                grad, q, k, v, out, lse, cu_seqlens, causal, window, scale, deterministic, _persistent(shape)
            )
    if backend == "sdpa":
        return gqa_sdpa.backward(grad, q, k, v, out, lse, bounds, causal, scale)
    if backend in gqa_libraries.modules():
        docs = gqa_libraries.documents(cu_seqlens, bounds, max_seqlen)
        return gqa_libraries.recomputed_gradients(backend, grad, q, k, v, docs, causal, window, scale, deterministic)
    return gqa_ref.backward(grad, q, k, v, bounds, causal, window, scale)


@_backward_op.register_fake
def _(grad, q, k, v, out, lse, cu_seqlens, max_seqlen, causal, window, scale, deterministic, impl):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, cu_seqlens, *output)
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, _grad_lse):  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens, out, lse = ctx.saved_tensors
    if grad is None:
        return (None,) * 10
    grads = _backward_op(grad.contiguous(), q, k, v, out, lse, cu_seqlens, *ctx.rest)
    return (*grads, *(None,) * 7)


_op.register_autograd(_autograd, setup_context=_setup)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def shape_of(
    q: Tensor, k: Tensor, max_seqlen: int, bounds: list[int], causal: bool, window: int, deterministic: bool,
    eager: bool = False,
) -> dict[str, int]:  # fmt: skip
    """What the dispatcher looks at. `bounds`: cu_seqlens; `eager`: outside of a compiled graph."""
    lengths = [end - start for start, end in itertools.pairwise(bounds) if end > start]
    return {
        "tokens": q.shape[0],
        "query_heads": q.shape[1],
        "kv_heads": k.shape[1],
        "head_dim": q.shape[2],
        "max_seqlen": max_seqlen,
        "window": window,
        "causal": int(causal),
        "deterministic": int(deterministic),
        "mean_length": q.shape[0] // max(len(lengths), 1),
        "equal_lengths": int(len(set(lengths)) == 1),
        "eager": int(eager),
    }


def _backend(impl: str, q: Tensor, shape: dispatch.Shape) -> str:
    while (backend := dispatch.resolve("gqa", impl, q, shape)) in gqa_libraries.modules():
        _, reason = gqa_libraries.function(backend)
        if not reason:
            break
        dispatch.exclude(backend, reason)  # so the next round chooses another, or says why the named one cannot run
    return backend


def _persistent(shape: dispatch.Shape) -> bool:
    """Whether Triton starts only as many programs as the GPU holds. Long documents have tiles of very different work,
    which the GPU's own scheduler deals out better."""
    return shape["mean_length"] < LONG_DOCUMENTS


def _has_values(x: Tensor) -> bool:
    """Whether it is a tensor on a GPU and not one that stands for it while a graph is traced."""
    return x.is_cuda and not torch.compiler.is_compiling() and type(x) in (Tensor, torch.nn.Parameter)


def gqa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    causal: bool = True,
    window: int = 0,
    scale: float | None = None,
    deterministic: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Attention of packed documents; differentiable in q, k and v.

    Args:
        q: (T, Hq, D) float16, bfloat16, float32 or float64, any strides.
        k, v: (T, Hkv, D), Hq a multiple of Hkv; dtype and device of q.
        cu_seqlens: (M,) int32 on the device of q: 0 = cu[0] ≤ cu[1] ≤ … ≤ cu[M-1] = T. Its length may be padded with
            repeats of T, so that it does not change from batch to batch.
            Call with it once before a CUDA graph is captured; each replay reads it anew, unchecked (cuDNN alone is
            held to the documents of the capture).
        max_seqlen: no document is longer; keep it constant (the context).
        causal: see only keys at or before the query.
        window: how far a query sees, itself included; 0 is unlimited.
        scale: of the scores; None is 1/√D.
        deterministic: the backward pass gives the same bits every time.
        impl: see `mify.kernels.dispatch`.

    Returns:
        (T, Hq, D), contiguous, dtype of q.

    Raises:
        TypeError, ValueError: an argument that cannot be meant, named; raised before anything is launched.
    """
    checks.tensor("q", q, dims=3)
    checks.tensor("k", k, dims=3)
    checks.tensor("v", v, dims=3)
    checks.tensor("cu_seqlens", cu_seqlens, dims=1)
    checks.floating("q", q)
    for name, x in (("k", k), ("v", v)):
        checks.same(name, x, "q", q)
        if x.shape[0] != q.shape[0] or x.shape[2] != q.shape[2]:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; q {tuple(q.shape)} asks for ({q.shape[0]}, Hkv, {q.shape[2]})"
            )
    if k.shape != v.shape:
        raise ValueError(f"k has shape {tuple(k.shape)} but v has {tuple(v.shape)}; they must be equal")
    if q.shape[2] == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}; the head dimension must be positive")
    if q.shape[1] == 0 or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} heads and k {k.shape[1]}; the first must be a multiple of the second")
    checks.integer("cu_seqlens", cu_seqlens, torch.int32)
    checks.same("cu_seqlens", cu_seqlens, "q", q, dtype=False)
    checks.whole_number("window", window)
    checks.whole_number("max_seqlen", max_seqlen)
    if window < 0:
        raise ValueError(f"window is {window}; it must be 0 (unlimited) or positive")
    if max_seqlen < 1:
        raise ValueError(f"max_seqlen is {max_seqlen}; it must be positive")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it must be positive, or None for 1/√D")
    scale = 1 / math.sqrt(q.shape[2]) if scale is None else float(scale)
    q, k, v = checks.no_overlap("q", q), checks.no_overlap("k", k), checks.no_overlap("v", v)
    if _has_values(q):
        bounds = checks.segment_bounds(cu_seqlens, q.shape[0], max_seqlen)
        shape = shape_of(q, k, max_seqlen, bounds, causal, window, deterministic, eager=True)
        while (backend := _backend(impl, q, shape)) in gqa_libraries.modules():
            # With its own autograd, which no op of ours could keep from forward to backward.
            docs = gqa_libraries.documents(cu_seqlens, bounds, max_seqlen)
            try:
                return gqa_libraries.attention(backend, q, k, v, docs, causal, window, scale, deterministic)
            except (RuntimeError, AssertionError, TypeError) as error:
                # Its rules change from version to version. What the GPU itself reports is no refusal.
                if isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error):
                    raise
                reason = f"{type(error).__name__}: {error}"
                if dispatch.wished("gqa", impl) == backend:
                    raise ValueError(f"impl {backend!r} of 'gqa' cannot run here: {reason}") from error
                dispatch.exclude(backend, reason)
        impl = f"gqa={backend}"
    out: Tensor = _op(q, k, v, cu_seqlens, max_seqlen, causal, window, scale, deterministic, impl)[0]
    return out
