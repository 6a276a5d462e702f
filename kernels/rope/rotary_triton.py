# mypy: disable-error-code="no-untyped-def"
"""Rotary positions in Triton, q and k in one launch: a program turns a block of (token, head) rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mify.kernels.ahead import LAUNCH, Case
from mify.kernels.launch import Launch, chosen, dense, on


@triton.jit
def _turn(
    x_ptr, y_ptr, cos_ptr, sin_ptr, block, x_token, x_head, tokens,
    HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    row = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    token = row // HEADS
    head = row % HEADS
    column = tl.arange(0, BLOCK_C)[None, :]
    inside = (token < tokens)[:, None] & (column < HALF)
    x_at = x_ptr + (token * x_token + head * x_head)[:, None] + column
    angle_at = (token * HALF)[:, None] + column
    first = tl.load(x_at, mask=inside, other=0.0)
    second = tl.load(x_at + HALF, mask=inside, other=0.0)
    cos = tl.load(cos_ptr + angle_at, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle_at, mask=inside, other=0.0).to(tl.float32)
    if INVERSE:
        sin = -sin
    a = first.to(tl.float32)
    b = second.to(tl.float32)
    y_at = y_ptr + (row * 2 * HALF)[:, None] + column
    tl.store(y_at, (a * cos - b * sin).to(first.dtype), mask=inside)
    tl.store(y_at + HALF, (b * cos + a * sin).to(first.dtype), mask=inside)


@triton.jit
def _kernel(
    q_ptr,  # (tokens, Q_HEADS, 2 * HALF)
    k_ptr,  # (tokens, K_HEADS, 2 * HALF)
    q_out_ptr,  # likewise, dense
    k_out_ptr,  # likewise, dense
    cos_ptr,  # (tokens, HALF)
    sin_ptr,  # (tokens, HALF)
    q_token,
    q_head,
    k_token,
    k_head,
    tokens,
    q_blocks,  # programs below turn q, the others k
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INVERSE: tl.constexpr,
):
    block = tl.program_id(0)
    if block < q_blocks:
        _turn(
            q_ptr, q_out_ptr, cos_ptr, sin_ptr, block, q_token, q_head, tokens, Q_HEADS, HALF, BLOCK_R, BLOCK_C, INVERSE
        )
    else:
        block -= q_blocks
        _turn(
            k_ptr, k_out_ptr, cos_ptr, sin_ptr, block, k_token, k_head, tokens, K_HEADS, HALF, BLOCK_R, BLOCK_C, INVERSE
        )


def launches(half: int) -> tuple[Launch, ...]:
    """How it may be launched: (token, head) rows of a block, by pairs of elements, and warps."""
    columns = triton.next_power_of_2(half)
    return tuple(
        {"BLOCK_R": max(1, pairs // columns), "BLOCK_C": columns, "num_warps": count}
        for pairs, count in ((2048, 4), (1024, 4), (4096, 4), (4096, 8))
    )


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """q and k turned, or with `inverse` turned back; cos and sin (T, D/2)."""
    q, k, cos, sin = dense(q), dense(k), cos.contiguous(), sin.contiguous()
    outs = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))
    tokens, heads, dim = q.shape
    if q.numel() or k.numel():
        launch = chosen("rope", q, dim, launches(dim // 2))
        rows = launch["BLOCK_R"]
        q_blocks = triton.cdiv(tokens * heads, rows)
        with on(q):
            _kernel[(q_blocks + triton.cdiv(tokens * k.shape[1], rows),)](
                q, k, *outs, cos, sin, q.stride(0), q.stride(1), k.stride(0), k.stride(1), tokens, q_blocks,
                Q_HEADS=heads, K_HEADS=k.shape[1], HALF=dim // 2, INVERSE=inverse, **launch, **LAUNCH,
            )  # fmt: skip
    return outs[0], outs[1]


def cases() -> list[Case]:
    """The shipped configurations, for compilation ahead: the heads of mify-2.5b and mify-125m."""
    found = []
    for heads, kv_heads, half in ((20, 4, 64), (6, 2, 64), (9, 3, 32)):
        launch = launches(half)[0]
        for inverse in (False, True):
            found.append(
                Case(
                    f"rope {'backward' if inverse else 'forward'} {heads}/{kv_heads} heads of {2 * half}",
                    _kernel,
                    {
                        "q_ptr": "*bf16",
                        "k_ptr": "*bf16",
                        "q_out_ptr": "*bf16",
                        "k_out_ptr": "*bf16",
                        "cos_ptr": "*fp32",
                        "sin_ptr": "*fp32",
                        "q_token": "i32*16",
                        "q_head": "i32*16",
                        "k_token": "i32*16",
                        "k_head": "i32*16",
                        "tokens": "i32",
                        "q_blocks": "i32",
                    },
                    {
                        "Q_HEADS": heads,
                        "K_HEADS": kv_heads,
                        "HALF": half,
                        "BLOCK_R": launch["BLOCK_R"],
                        "BLOCK_C": launch["BLOCK_C"],
                        "INVERSE": inverse,
                    },
                    num_warps=launch["num_warps"],
                )
            )
    return found
