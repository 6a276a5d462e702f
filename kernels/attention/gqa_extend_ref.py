"""Attention of several new tokens a sequence in plain torch: every token as a sequence of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from . import gqa_decode_ref


def forward(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens: Tensor,
    lengths: Tensor,
    page_table: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
) -> Tensor:
    """As `gqa_extend.gqa_extend`; the keys are gathered for each token anew."""
    at = torch.arange(q.shape[0], device=q.device)
    owner = torch.searchsorted(cu_seqlens[1:].contiguous(), at, right=True)
    seen = lengths[owner] - cu_seqlens[1:][owner] + at + 1
    return gqa_decode_ref.forward(
        q, k_cache, v_cache, seen.to(torch.int32), page_table[owner], k_scale, v_scale, scale
    )  # fmt: skip
