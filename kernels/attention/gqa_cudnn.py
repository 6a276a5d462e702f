"""Grouped-query attention by cuDNN through torch's scaled_dot_product_attention, for documents of one length.

cuDNN plans for each shape that it meets, which takes longer than the attention itself, so documents of other lengths
are refused rather than sent one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mify.kernels import dispatch

from . import gqa_libraries


def refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    """Why it cannot run, or ""."""
    reason = gqa_libraries.refuses_common(device, dtype, shape, capability=(8, 0), most=128)
    if reason:
        return reason
    if shape["window"]:
        return "torch gives it no sliding window"
    if shape["deterministic"]:
        return "its backward pass is not deterministic"
    return "" if shape["equal_lengths"] else "it is for documents of one length"


def load() -> Callable[..., Any]:
    """The public function, held to cuDNN."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def function(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(q, k, v, **options)

    return function


def attention(
    function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, documents: gqa_libraries.Documents, causal: bool,
    window: int, scale: float, deterministic: bool,
) -> Tensor:  # fmt: skip
    """See `gqa_libraries`."""
    length = documents.bounds[1]
    a, b, c = (x.reshape(-1, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
    out: Tensor = function(a, b, c, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).reshape(q.shape)
