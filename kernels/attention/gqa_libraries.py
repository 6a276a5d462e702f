"""What the attention backends of other projects share: flash-attn 2, 3 and 4, torch's flash attention, cuDNN.

Each stands in a file of its own, `gqa_fa3.py` say, with

    refuses(device, dtype, shape) → why it cannot run, or "";
    load() → its public function; raises what the import raises;
    attention(function, q, k, v, documents, causal, window, scale, deterministic) → out, with autograd of its own.

They are called as their documentation says and no deeper. None of them has run here: no GPU was at hand, so what is
tested is the call (`tests/kernels/test_gqa_libraries.py`), and on a GPU, once there is one, the numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mify.kernels import checks, dispatch, launch


@dataclass(frozen=True)
class Documents:
    """The documents of a batch as libraries want them: without the empty ones, which cost them blocks that do nothing.

    Args:
        cu_seqlens: (documents + 1,) int32. bounds: the same on the host, strictly rising.
        longest: no document is longer.
    """

    cu_seqlens: Tensor
    bounds: tuple[int, ...]
    longest: int


def documents(cu_seqlens: Tensor, bounds: list[int], max_seqlen: int) -> Documents:
    """The documents that are not empty; remembered with `cu_seqlens` for the other layers.

    In a CUDA graph that is captured `cu_seqlens` itself with its empty documents and `max_seqlen`, so that a replay
    follows what was written to it since.
    """
    rising = tuple(dict.fromkeys(bounds))
    if checks.captures(cu_seqlens):
        return Documents(cu_seqlens, rising, max_seqlen)

    def make() -> Documents:
        dense = torch.tensor(rising, dtype=torch.int32).to(cu_seqlens.device)
        return Documents(dense, rising, checks.longest_segment(list(rising)))

    found: Documents = checks.remembered("documents", cu_seqlens, make)
    return found


def refuses_common(
    device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape, *, capability: tuple[int, int], most: int
) -> str:
    """Why none of these libraries could run: no GPU, an older one, a dtype or head dimension that they do not have."""
    if device.kind != "cuda":
        return "it runs on a GPU"
    if device.capability < capability:
        needed, have = (".".join(map(str, c)) for c in (capability, device.capability))
        return f"it needs compute capability {needed}, this GPU has {have}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {dtype}"
    if shape["head_dim"] % 8 or shape["head_dim"] > most:
        return f"its head dimension must be a multiple of 8 up to {most}, not {shape['head_dim']}"
    if shape["tokens"] == 0:
        return "there are no tokens"
    return ""


def flash_window(causal: bool, window: int) -> tuple[int, int]:
    """flash-attn's (left, right): how many keys before and after its own a query sees; -1 is unlimited."""
    left = window - 1 if window else -1
    return left, 0 if causal else left


def flash_varlen(
    function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, docs: Documents, causal: bool, window: int,
    scale: float, deterministic: bool, unlimited: int | None,
) -> Any:  # fmt: skip
    """flash_attn_varlen_func by the arguments that flash-attn 2, 3 and 4 have in common; `unlimited`: no window."""
    return function(
        q,
        k,
        v,
        cu_seqlens_q=docs.cu_seqlens,
        cu_seqlens_k=docs.cu_seqlens,
        max_seqlen_q=docs.longest,
        max_seqlen_k=docs.longest,
        softmax_scale=scale,
        causal=causal,
        window_size=flash_window(causal, window) if window else (unlimited, unlimited),
        deterministic=deterministic,
    )


@functools.cache
def modules() -> dict[str, ModuleType]:
    """Backend → its module."""
    from . import gqa_cudnn, gqa_fa2, gqa_fa3, gqa_fa4, gqa_torch_flash

    return {"cudnn": gqa_cudnn, "fa2": gqa_fa2, "fa3": gqa_fa3, "fa4": gqa_fa4, "torch_flash": gqa_torch_flash}


@functools.cache
def function(backend: str) -> tuple[Callable[..., Any] | None, str]:
    """The library's function and "", or None and why it cannot be loaded."""
    try:
        return modules()[backend].load(), ""
    except Exception as error:  # noqa: BLE001 -- a package built for another torch fails in its own ways
        return None, f"{type(error).__name__}: {error}"


def attention(
    backend: str, q: Tensor, k: Tensor, v: Tensor, docs: Documents, causal: bool, window: int, scale: float,
    deterministic: bool,
) -> Tensor:  # fmt: skip
    """(T, Hq, D), differentiable; `function(backend)` must be there."""
    call, reason = function(backend)
    if call is None:
        raise ValueError(f"impl {backend!r} of 'gqa' cannot run here: {reason}")
    q, k, v = (checks.aligned_rows(x) for x in (q, k, v))
    with launch.on(q):
        out: Tensor = modules()[backend].attention(call, q, k, v, docs, causal, window, scale, deterministic)
    return out


def recomputed_gradients(
    backend: str, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, docs: Documents, causal: bool, window: int,
    scale: float, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) by running the library forward again, for a compiled graph: there its autograd cannot be kept."""
    with torch.enable_grad(), _autograd_inside_an_op():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        out = attention(backend, q, k, v, docs, causal, window, scale, deterministic)
        dq, dk, dv = torch.autograd.grad(out, (q, k, v), grad)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def _autograd_inside_an_op() -> AbstractContextManager[object]:
    """Within it autograd records again: inside an op it does not, since the op itself is what is differentiated."""
    core: Any = torch._C
    hidden = core._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        hidden = hidden.remove(getattr(core.DispatchKey, key))
    guard: AbstractContextManager[object] = core._ForceDispatchKeyGuard(core._dispatch_tls_local_include_set(), hidden)
    return guard
