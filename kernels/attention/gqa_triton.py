"""Grouped-query attention over packed documents in Triton: launches of `gqa_triton_kernels`, tile sizes, edges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mify.kernels import checks, dispatch, launch, measured
from mify.kernels.ahead import LAUNCH, Case

from . import gqa_triton_kernels as kernels


@dataclass(frozen=True)
class Tiles:
    """A block of rows (queries) by columns (keys), and how it is run.

    Args:
        residents: blocks that one multiprocessor holds at once, by their registers and shared memory: so many programs
            a persistent launch starts on each.
        specialized: some warps only copy, others only compute (forward). Triton 3.9 does it for 4 warps and a tile of
            64, ignores it for 8, and fails to compile it for a tile of 128.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    residents: int = 1
    specialized: bool = False

    def __str__(self) -> str:
        kind = ", specialized" if self.specialized else ""
        return f"{self.block_m}x{self.block_n}, {self.num_warps} warps, {self.num_stages} stages{kind}"

    @property
    def launch(self) -> dict[str, Any]:
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "num_warps": self.num_warps,
                "num_stages": self.num_stages, **LAUNCH}  # fmt: skip


# (kernel, head dimension up to) → tiles, for 2-byte dtypes: the first is used, the others are what tuning may try.
# The first was chosen without a GPU: the largest that compiles for sm_90 without a spill. None is measured. Beyond 128
# they are correct and no more: nothing that fits uses Hopper's matrix instructions, and queries spills 536 bytes.
_TILES = {
    ("forward", 64): (Tiles(128, 128, 8, 3), Tiles(128, 64, 8, 3), Tiles(128, 64, 4, 3, 2), Tiles(64, 64, 4, 3, 3)),
    ("forward", 128): (
        Tiles(128, 64, 8, 3), Tiles(128, 128, 8, 2), Tiles(64, 64, 4, 3, 2), Tiles(64, 64, 4, 2, specialized=True),
    ),
    ("forward", 256): (Tiles(32, 32, 8, 1),),
    ("keys", 64): (Tiles(64, 128, 8, 2), Tiles(64, 128, 8, 3)),
    ("keys", 128): (Tiles(32, 128, 8, 3),),
    ("keys", 256): (Tiles(32, 32, 8, 1),),
    ("keys and dq", 64): (Tiles(64, 128, 8, 2),),
    ("keys and dq", 128): (Tiles(64, 64, 8, 2),),
    ("keys and dq", 256): (Tiles(32, 32, 8, 1),),
    ("queries", 64): (Tiles(128, 64, 8, 3), Tiles(128, 128, 8, 2)),
    ("queries", 128): (Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 3), Tiles(64, 64, 8, 2)),
    ("queries", 256): (Tiles(32, 32, 8, 1),),
}  # fmt: skip
# Ampere has 163 KiB of shared memory at most, and its matrix instructions read from registers: smaller tiles, fewer
# stages, 8 warps (with 4 backward spills 256 to 4,440 bytes a thread). The first spills least: 24 bytes forward with a
# window, 40 in keys at 128, else nothing; the others 16 to 88.
_AMPERE_TILES = {
    ("forward", 128): (Tiles(64, 64, 8, 2),),
    ("keys", 64): (Tiles(32, 128, 8, 2),),
    ("keys", 128): (Tiles(32, 64, 8, 2),),
    ("keys and dq", 64): (Tiles(32, 64, 8, 2),),
    ("keys and dq", 128): (Tiles(32, 32, 8, 2), Tiles(32, 64, 8, 2)),
    ("queries", 64): (Tiles(128, 32, 8, 2), Tiles(64, 64, 8, 2)),
    ("queries", 128): (Tiles(64, 32, 8, 2), Tiles(64, 64, 8, 2)),
    **{(kernel, 256): (Tiles(32, 32, 8, 1),) for kernel in ("forward", "keys", "keys and dq", "queries")},
}
# fp32 has no tensor cores here and twice the bytes.
_WIDE_TILES = Tiles(32, 32, 4, 1)


def tiles(kernel: str, dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> tuple[Tiles, ...]:
    """For "forward", "keys" (dk and dv), "keys and dq" or "queries" (dq): the tiles to use, then others to try."""
    if dtype == torch.float32:
        return (_WIDE_TILES,)
    table = _TILES if capability >= (9, 0) else _AMPERE_TILES
    return next(value for (name, limit), value in table.items() if name == kernel and dim <= limit)


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, causal: bool, window: int, scale: float, persistent: bool
) -> tuple[Tensor, Tensor]:
    """As `gqa_ref.forward`; cu_seqlens has been checked. `persistent`: as many programs as the GPU holds, no more."""
    q, k, v = (checks.aligned_rows(x) for x in (q, k, v))
    tokens, heads, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((heads, tokens), dtype=torch.float32)
    if tokens:
        chosen = _tiles_for("forward", q)
        kernels._forward_kernel[_grid(triton.cdiv(tokens, chosen.block_m) * heads, chosen, q, persistent)](
            _blocks(q, chosen.block_m), _blocks(k, chosen.block_n), _blocks(v, chosen.block_n), out, lse,
            *edges(cu_seqlens, tokens), tokens, window, scale * _LOG2E,
            **_constants(q, k, causal, window), SPECIALIZED=chosen.specialized, **chosen.launch,
        )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    causal: bool,
    window: int,
    scale: float,
    deterministic: bool,
    persistent: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv). Not `deterministic`, dq is summed by fp32 atomics: 5 matrix products instead of 7."""
    q, k, v = (checks.aligned_rows(x) for x in (q, k, v))
    grad, out = (checks.aligned_rows(x.contiguous()) for x in (grad, out))
    tokens, heads, dim = q.shape
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    if not tokens:
        return dq, dk, dv
    # Rows padded to 16 bytes, as the copy engine asks.
    statistics = lse.new_empty((2, heads, triton.cdiv(tokens, 4) * 4))
    lse2, delta = statistics[..., :tokens]
    constants = _constants(q, k, causal, window)
    kernels._statistics_kernel[(triton.cdiv(tokens, 64), heads)](
        grad, out, lse, lse2, delta, tokens, statistics.shape[2],
        HEADS=heads, DIM=dim, BLOCK_M=64, BLOCK_D=constants["BLOCK_D"], **LAUNCH,
    )  # fmt: skip
    summed = None if deterministic else torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    bulk = summed is not None and q.is_cuda  # Triton's interpreter knows no reduction through a descriptor
    reach = edges(cu_seqlens, tokens)
    by_keys = _tiles_for("keys" if deterministic else "keys and dq", q)
    kernels._key_kernel[_grid(triton.cdiv(tokens, by_keys.block_n) * k.shape[1], by_keys, q, persistent)](
        _blocks(q, by_keys.block_m), k, v, _blocks(grad, by_keys.block_m),
        _row_blocks(lse2, by_keys.block_m), _row_blocks(delta, by_keys.block_m),
        _blocks(summed, by_keys.block_m) if summed is not None and bulk else summed, dk, dv, *reach,
        *k.stride()[:2], *v.stride()[:2], tokens, window, scale,
        ADD_DQ=summed is not None, BULK=bulk, **constants, **by_keys.launch,
    )  # fmt: skip
    if summed is not None:
        return summed.to(q.dtype), dk, dv
    by_queries = _tiles_for("queries", q)
    kernels._query_kernel[_grid(triton.cdiv(tokens, by_queries.block_m) * heads, by_queries, q, persistent)](
        _blocks(q, by_queries.block_m), _blocks(k, by_queries.block_n), _blocks(v, by_queries.block_n),
        _blocks(grad, by_queries.block_m), _row_blocks(lse2, by_queries.block_m),
        _row_blocks(delta, by_queries.block_m), dq, *reach, tokens, window, scale,
        **constants, **by_queries.launch,
    )  # fmt: skip
    return dq, dk, dv


_LOG2E = 1.4426950408889634


def edges(cu_seqlens: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Where each token's document begins and ends, (T,) int32 each; remembered with cu_seqlens for the other layers."""

    def make() -> tuple[Tensor, Tensor]:
        bounds = cu_seqlens.contiguous()
        start, end = (bounds.new_empty(tokens) for _ in range(2))
        kernels._edges_kernel[(triton.cdiv(tokens, _EDGES_BLOCK),)](
            bounds, start, end, tokens, bounds.shape[0] - 1, BLOCK=_EDGES_BLOCK, **LAUNCH
        )
        return start, end

    found: tuple[Tensor, Tensor] = checks.remembered("edges", cu_seqlens, make)
    return found


_EDGES_BLOCK = 256


def _grid(units: int, chosen: Tiles, q: Tensor, persistent: bool) -> tuple[int]:
    return (min(units, launch.processors(q) * chosen.residents) if persistent else units,)


_forced: dict[str, Tiles] = {}


@contextmanager
def using(kernel: str, chosen: Tiles) -> Iterator[None]:
    """Within it `kernel` runs with these tiles: for tuning."""
    _forced[kernel] = chosen
    try:
        yield
    finally:
        del _forced[kernel]


def _tiles_for(kernel: str, q: Tensor) -> Tiles:
    if kernel in _forced:
        return _forced[kernel]
    device = dispatch.describe(q.device)
    candidates = tiles(kernel, q.shape[2], q.dtype, device.capability if q.is_cuda else (9, 0))
    names = measured.fastest_first(
        measured.load(), f"gqa {kernel}", device.name, str(q.dtype).removeprefix("torch."), {"head_dim": q.shape[2]},
        measured.Like(equal=("head_dim",)),
    )  # fmt: skip
    by_name = {str(candidate): candidate for candidate in candidates}
    return next((by_name[name] for name in names if name in by_name), candidates[0])


def _blocks(x: Tensor, rows: int) -> TensorDescriptor:
    """Blocks of `rows` tokens of one head, the head dimension padded to a power of two by zeros."""
    width = max(16, triton.next_power_of_2(x.shape[2]))
    # The stride of a dimension of one element means nothing and may be odd; the copy engine asks for 16 bytes.
    strides = [width if size == 1 else stride for size, stride in zip(x.shape[:2], x.stride()[:2], strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [rows, 1, width])


def _row_blocks(x: Tensor, rows: int) -> TensorDescriptor:
    """Blocks of `rows` of one head's row of (heads, tokens)."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, rows])


def _constants(q: Tensor, k: Tensor, causal: bool, window: int) -> dict[str, Any]:
    return {
        "HEADS": q.shape[1],
        "GROUP": q.shape[1] // k.shape[1],
        "DIM": q.shape[2],
        "BLOCK_D": max(16, triton.next_power_of_2(q.shape[2])),
        "CAUSAL": causal,
        "WINDOW": window > 0,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }


_KERNELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "forward": (kernels._forward_kernel, {}),
    "keys": (kernels._key_kernel, {"ADD_DQ": False, "BULK": False, "dq_sums": None}),
    "keys and dq": (kernels._key_kernel, {"ADD_DQ": True, "BULK": True}),
    "queries": (kernels._query_kernel, {}),
}


def cases(capability: int = 90) -> list[Case]:
    """The shipped configurations, for compilation ahead: heads of mify-2.5b (128) and mify-tiny (64), bf16.

    The tiles that are used, without and with a window; then those that tuning may choose, by their sizes in brackets.
    """
    tables = {"cu_ptr": "*i32", "start_ptr": "*i32", "end_ptr": "*i32", "tokens": "i32", "documents": "i32"}
    found = [Case("gqa edges", kernels._edges_kernel, tables, {"BLOCK": _EDGES_BLOCK})]
    for dim, heads, group in ((128, 20, 5), (64, 4, 2)):
        for kernel in _KERNELS:
            used, *others = tiles(kernel, dim, torch.bfloat16, divmod(capability, 10))
            label = f"gqa {kernel} {dim}"
            found += [_case(kernel, used, (dim, heads, group), label, False)]
            found += [_case(kernel, used, (dim, heads, group), f"{label} window", True)]
            found += [_case(kernel, other, (dim, heads, group), f"{label} [{other}]", False) for other in others]
    return found


def _case(kernel: str, chosen: Tiles, sizes: tuple[int, int, int], label: str, window: bool) -> Case:
    dim, heads, group = sizes
    function, extra = _KERNELS[kernel]
    types: dict[str, str] = dict.fromkeys(("tokens", "window"), "i32")
    types |= dict.fromkeys(("k_ptr", "v_ptr", "out_ptr", "dq_ptr", "dk_ptr", "dv_ptr"), "*bf16")
    types |= {"lse_ptr": "*fp32"} | dict.fromkeys(("start_ptr", "end_ptr"), "*i32")
    types |= dict.fromkeys(("lse2_tensor", "delta_tensor"), f"tensordesc<fp32[1, {chosen.block_m}]>")
    types |= dict.fromkeys(("k_token", "k_head", "v_token", "v_head"), "i32*16")
    types |= dict.fromkeys(("scale", "scale_log2"), "fp32")
    for name, rows in (("q", chosen.block_m), ("grad", chosen.block_m), ("k", chosen.block_n), ("v", chosen.block_n)):
        types[f"{name}_tensor"] = f"tensordesc<bf16[{rows}, 1, {dim}]>"
    types["dq_sums"] = f"tensordesc<fp32[{chosen.block_m}, 1, {dim}]>"
    constants: dict[str, Any] = {
        "HEADS": heads, "GROUP": group, "DIM": dim, "BLOCK_D": dim, "CAUSAL": True, "WINDOW": window,
        "PRECISION": "tf32", "BLOCK_M": chosen.block_m, "BLOCK_N": chosen.block_n, **extra,
    }  # fmt: skip
    if kernel == "forward":
        constants["SPECIALIZED"] = chosen.specialized
    arguments = {name: types[name] for name in function.arg_names if name not in constants}
    return Case(label, function, arguments, constants, chosen.num_warps, chosen.num_stages, uses_tensor_cores=True)
