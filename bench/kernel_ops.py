"""What `mify bench kernels` times of attention: inputs, ours, rivals, cost; and what all ops share.

One function an op; nothing is timed here. The row-wise ops and the loss stand in `row_ops`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mify import kernels
from mify.bench.kernel_cases import document_lengths
from mify.bench.timing import Work, random_like_activations
from mify.kernels import cost
from mify.kernels.attention.gqa_decode import FP8, gqa_decode
from mify.kernels.cost import Cost


@dataclass
class Prepared:
    """One thing to time.

    Args:
        works: implementation → a call that returns its result, or calls on buffers of their own (see `time_gpu`).
        cost: of one call.
        exact: gives the result in fp32 (or wider), which every implementation is held against before it is timed.
        absent: rival → why it cannot run here.
        memory_besides: bytes of results that any implementation must hold; where given, what is held besides is a row.
        seen: what of a call's result is compared with `exact`; None compares it as it is.
        tolerance: the largest error, as a share of the largest value; None goes by the dtype.
    """

    works: dict[str, Work | Sequence[Work]]
    cost: Cost
    exact: Callable[[], Any]
    absent: dict[str, str] = field(default_factory=dict)
    memory_besides: int | None = None
    seen: Callable[[Any], Any] | None = None
    tolerance: float | None = None


Parts = Mapping[str, Prepared]
__all__ = ["Parts", "Prepared", "as_tuple", "decode", "differentiable", "document_lengths", "gqa", "optional"]


def differentiable(
    calls: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]],
    inputs: Sequence[Tensor],
    forward_cost: Cost,
    backward_cost: Cost,
    absent: dict[str, str],
    exact: Callable[..., Any],
) -> Parts:
    """The two directions of differentiable functions of the same `inputs`; output gradients are random.

    Every implementation gets inputs and gradients of its own: some write into theirs.
    """
    leaves = {name: [x.detach().clone().requires_grad_() for x in inputs] for name in calls}
    results: dict[str, tuple[Tensor, ...]] = {}
    failed = dict(absent)
    for name, call in calls.items():
        try:
            results[name] = as_tuple(call(*leaves[name]))
        except Exception as error:
            if name == "mify":
                raise
            failed[name] = f"{type(error).__name__}: {error}"[:200]
    grads = [torch.randn_like(x) for x in results["mify"]]

    def forward(name: str) -> Work:
        own = [x.detach().clone() for x in inputs]
        return lambda: calls[name](*own)

    def backward(name: str) -> Work:
        own = [g.clone() for g in grads]
        return lambda: torch.autograd.grad(results[name], leaves[name], own, retain_graph=True)

    def exact_backward() -> Any:
        wide = [x.detach().float().requires_grad_() for x in inputs]
        return torch.autograd.grad(as_tuple(exact(*wide)), wide, [g.float() for g in grads])

    return {
        "forward": Prepared(
            {name: forward(name) for name in results}, forward_cost, lambda: exact(*(x.float() for x in inputs)), failed
        ),
        "backward": Prepared({name: backward(name) for name in results}, backward_cost, exact_backward, failed),
    }


def as_tuple(x: Any) -> tuple[Tensor, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def optional(module: str, name: str, absent: dict[str, str], label: str) -> Any:
    """A rival's function, or None with the reason in `absent`."""
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001 -- a package built for another torch fails in its own ways
        absent[label] = f"{module}.{name}: {type(error).__name__}: {error}"[:200]
        return None


def gqa(
    device: str, dtype: torch.dtype, lengths: list[int], heads: int, kv_heads: int, dim: int, own_triton: bool = False
) -> Parts:
    """Packed causal attention against flash-attn 2, 3 and 4, cuDNN and torch's own, whichever are here.

    Args:
        own_triton: also time our Triton kernels where the dispatcher takes something else.
    """
    tokens, longest = sum(lengths), max(lengths)
    q, k, v = (
        random_like_activations(tokens, n, dim, dtype=dtype, device=device, seed=n) for n in (heads, kv_heads, kv_heads)
    )
    v = v.roll(1, 0)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)
    absent: dict[str, str] = {}
    calls: dict[str, Callable[..., Any]] = {"mify": lambda q, k, v: kernels.gqa_attention(q, k, v, bounds, longest)}
    if own_triton:
        calls["mify triton"] = lambda q, k, v: kernels.gqa_attention(q, k, v, bounds, longest, impl="triton")
    if device == "cuda":
        for label, module in (("fa2", "flash_attn"), ("fa3", "flash_attn_interface"), ("fa4", "flash_attn.cute")):
            found = optional(module, "flash_attn_varlen_func", absent, label)
            if found is not None:
                calls[label] = _flash(found, bounds, longest)
        varlen = optional("torch.nn.attention.varlen", "varlen_attn", absent, "torch varlen")
        if varlen is not None:
            more = _varlen_heads(varlen, heads != kv_heads)
            calls["torch varlen"] = lambda q, k, v: varlen(
                q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0), **more
            )
        if len(set(lengths)) > 1:
            absent["cudnn"] = "torch gives cuDNN no documents of different lengths"
    if len(set(lengths)) == 1:
        calls |= _sdpa(len(lengths), device)
    elif device == "cpu":
        calls["torch"] = lambda q, k, v: _by_document(q, k, v, lengths)
    pairs = cost.visible_pairs(lengths)
    sizes = (pairs, tokens, heads, kv_heads, dim)
    element = dtype.itemsize

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _by_document(q, k, v, lengths)

    return differentiable(
        calls, (q, k, v), cost.gqa_forward(*sizes, element=element),
        cost.gqa_backward(*sizes, element=element, recomputed=True), absent, exact,
    )  # fmt: skip


def _varlen_heads(varlen: Any, grouped: bool) -> dict[str, bool]:
    """torch 2.12 asks to be told that heads are grouped; before, they simply may be."""
    return {"enable_gqa": grouped} if "enable_gqa" in inspect.signature(varlen).parameters else {}


def _flash(function: Any, bounds: Tensor, longest: int) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(
            q, k, v, cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=longest, max_seqlen_k=longest, causal=True
        )
        return _first(out)

    return call


def _sdpa(batch: int, device: str) -> dict[str, Callable[..., Tensor]]:
    """torch's SDPA over documents of equal length, with each of its backends that exists."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a, b, c = (x.reshape(batch, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(a, b, c, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).flatten(0, 1)

    def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return call(q, k, v)

    return {"torch": call, "cudnn": cudnn} if device == "cuda" else {"torch": call}


def _by_document(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    parts = []
    for document in zip(*(torch.split(x, lengths) for x in (q, k, v)), strict=True):
        a, b, c = (x.transpose(0, 1)[None] for x in document)
        out = F.scaled_dot_product_attention(a, b, c, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def decode(
    device: str, dtype: torch.dtype, batch: int, keys: int, heads: int, kv_heads: int, dim: int, fp8: bool, copies: int
) -> Parts:
    """One token a sequence against a paged cache, on `copies` caches in turn so that none is in L2.

    Rivals are flash-attn 2, 3 and 4 and torch's own, whichever are here and take the same cache.
    """
    page = 64
    columns = -(-keys // page)
    lengths = torch.full((batch,), keys, dtype=torch.int32, device=device)
    cache = FP8 if fp8 else dtype
    absent: dict[str, str] = {}
    bounds = torch.arange(batch + 1, dtype=torch.int32, device=device)
    rivals = _decode_rivals(absent) if device == "cuda" and not fp8 else {}
    works: dict[str, list[Work]] = {name: [] for name in ("mify", *rivals)}
    q = random_like_activations(batch, heads, dim, dtype=dtype, device=device)
    for copy in range(copies):
        shape = (batch * columns, page, kv_heads, dim)
        k, v = (random_like_activations(*shape, dtype=cache, device=device, seed=2 * copy + i) for i in (0, 1))
        table = torch.randperm(batch * columns, device=device).view(batch, columns).to(torch.int32)
        if copy == 0:
            first = (k, v, table)
        works["mify"].append(_decode_call(q, k, v, lengths, table, "auto"))
        for name, rival in rivals.items():
            works[name].append(functools.partial(rival, q, k, v, lengths, table, bounds, keys))
    if device == "cpu":
        works["torch"] = [lambda: _decode_plain(q, *first, keys)]
    whole = cost.gqa_decode(
        [keys] * batch, heads, kv_heads, dim, kv_element=cache.itemsize, element=dtype.itemsize, page_size=page
    )
    return {"decode": Prepared(dict(works), whole, lambda: _decode_plain(q.float(), *first, keys), absent)}


def _decode_call(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, table: Tensor, impl: str) -> Work:
    return lambda: gqa_decode(q, k, v, lengths, page_table=table, impl=impl)


def _decode_rivals(absent: dict[str, str]) -> dict[str, Callable[..., Tensor]]:
    """Rival → a call of (q, k, v, lengths, table, bounds, keys), each by the public function its project has for this.

    `bounds` are cu_seqlens of one query a sequence.
    """
    found: dict[str, Callable[..., Tensor]] = {}
    varlen = optional("torch.nn.attention.varlen", "varlen_attn", absent, "torch varlen")
    if varlen is not None:
        more = _varlen_heads(varlen, True)
        found["torch varlen"] = lambda q, k, v, lengths, table, bounds, keys: varlen(
            q, k, v, bounds, None, 1, keys, seqused_k=lengths, block_table=table, **more
        )
    for label, module, table_name in (
        ("fa2", "flash_attn", "block_table"),
        ("fa3", "flash_attn_interface", "page_table"),
    ):
        cached = optional(module, "flash_attn_with_kvcache", absent, label)
        if cached is not None:
            found[label] = _with_cache(cached, table_name)
    fa4 = optional("flash_attn.cute", "flash_attn_varlen_func", absent, "fa4")
    if fa4 is not None:
        found["fa4"] = lambda q, k, v, lengths, table, bounds, keys: _first(
            fa4(
                q,
                k,
                v,
                cu_seqlens_q=bounds,
                max_seqlen_q=1,
                max_seqlen_k=keys,
                seqused_k=lengths,
                page_table=table,
            )
        )
    return found


def _with_cache(function: Any, table_name: str) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, table: Tensor, bounds: Tensor, keys: int) -> Tensor:
        return _first(function(q[:, None], k, v, cache_seqlens=lengths, **{table_name: table}))[:, 0]

    return call


def _first(out: Any) -> Tensor:
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def _decode_plain(q: Tensor, k: Tensor, v: Tensor, table: Tensor, keys: int) -> Tensor:
    batch, heads, dim = q.shape
    a, b = (x[table.long()].flatten(1, 2)[:, :keys].to(q.dtype).transpose(1, 2) for x in (k, v))
    out = F.scaled_dot_product_attention(q[:, :, None], a, b, enable_gqa=heads != k.shape[2])
    return out.reshape(batch, heads, dim)
