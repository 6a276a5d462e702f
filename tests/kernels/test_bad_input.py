"""Every tensor argument of every public function, spoilt in every way: an error that names what is wrong, before
anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mify.kernels import (
    add_rms_norm,
    apply_rope,
    cross_entropy,
    dispatch,
    gqa_attention,
    gqa_decode,
    linear_cross_entropy,
    pack_spans,
    rms_norm,
    swiglu,
    unpack_rows,
)
from mify.kernels.gemm.gemm import fp8_matmul
from mify.kernels.gemm.linear import fp8_linear
from mify.kernels.mlp.glu_fp8 import swiglu_backward, swiglu_fp8
from mify.kernels.norm.norm_fp8 import rms_norm_backward, rms_norm_fp8
from mify.kernels.quantize.quantize import quantize_fp8

INT = {"dtype": torch.int32}
X = torch.randn(12, 32)
Q, K = torch.randn(12, 4, 16), torch.randn(12, 2, 16)
CACHE, POOL = torch.randn(3, 9, 2, 16), torch.randn(5, 8, 2, 16)
LABELS = torch.arange(12) % 7
ANGLES = torch.randn(12, 8)
A, B = quantize_fp8(X), quantize_fp8(X.repeat(2, 1)[:16])
SCALE = torch.tensor(1.0)
STARTS, ROWS = torch.tensor([0, 5, 0], **INT), torch.tensor([0, 2, 3])
PACKED = torch.zeros(2, 16, dtype=torch.uint16)
SPANS = {"span_source": torch.zeros(3, dtype=torch.int64), "span_starts": STARTS, "span_rows": ROWS,
         "segment_starts": STARTS, "segment_loss": torch.zeros(3, **INT), "segment_rows": ROWS}  # fmt: skip

# function → (its tensors by name, its other arguments, what may well be otherwise: "argument change")
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Tensor], dict[str, Any], set[str]]] = {
    "gqa_attention": (
        gqa_attention,
        {"q": Q, "k": K, "v": K.clone(), "cu_seqlens": torch.tensor([0, 5, 12], **INT)},
        {"max_seqlen": 12},
        {"cu_seqlens a row more"},  # padded
    ),
    "gqa_decode": (
        gqa_decode,
        {"q": Q[:3], "k_cache": CACHE, "v_cache": CACHE.clone(), "lengths": torch.tensor([1, 0, 9], **INT)},
        {},
        set(),
    ),
    "gqa_decode with pages": (
        gqa_decode,
        {"q": Q[:3], "k_cache": POOL, "v_cache": POOL.clone(), "lengths": torch.tensor([1, 0, 16], **INT),
         "page_table": torch.zeros(3, 2, **INT), "k_scale": torch.ones(2), "v_scale": torch.ones(2)},
        {},
        {"k_scale absent", "v_scale absent"},
    ),
    "rms_norm": (rms_norm, {"x": X, "weight": X[0]}, {}, {"x wider", "x a row less", "x a row more", "weight wider"}),
    "add_rms_norm": (add_rms_norm, {"x": X, "residual": X + 1, "weight": X[0]}, {}, {"weight wider"}),
    "apply_rope": (
        apply_rope, {"q": Q, "k": K, "cos": ANGLES, "sin": ANGLES.clone()}, {},
        {"q a column less", "k a column less", "cos wider", "sin wider"},
    ),
    "swiglu": (swiglu, {"gate": X, "up": X + 1}, {}, set()),
    "cross_entropy": (cross_entropy, {"logits": X[:, :7], "labels": LABELS}, {}, {"logits wider"}),
    "linear_cross_entropy": (
        linear_cross_entropy, {"hidden": X, "weight": X[:7] + 1, "labels": LABELS}, {}, {"weight a row more"},
    ),
    "rms_norm_fp8": (
        rms_norm_fp8, {"x": X, "weight": X[0], "residual": X + 1, "scale": SCALE}, {},
        {"weight wider", "residual absent", "scale absent"},
    ),
    "rms_norm_backward": (
        rms_norm_backward,
        {"grad": X, "normed": X + 1, "weight": X[0], "inverse": X[:, :1], "grad_total": X + 2},
        {},
        {"weight wider", "grad_total absent"},
    ),
    "swiglu_fp8": (swiglu_fp8, {"gate": X, "up": X + 1, "scale": SCALE}, {}, {"scale absent"}),
    "swiglu_backward": (swiglu_backward, {"grad": X, "gate": X + 1, "up": X + 2}, {}, set()),
    "quantize_fp8": (
        quantize_fp8, {"x": X, "scale": SCALE}, {},
        {"x wider", "x a row less", "x a row more", "x a column less", "x a feature less", "scale absent"},
    ),
    "fp8_matmul": (
        fp8_matmul, {"a": A.data, "scale_a": A.scale, "b": B.data, "scale_b": B.scale}, {}, set(),
    ),
    "fp8_linear": (fp8_linear, {"x": X, "weight": torch.randn(16, 32)}, {},
                   {"x a row less", "x a row more", "weight wider"}),
    "unpack_rows": (
        unpack_rows,
        {"rows": PACKED, "loss_bits": torch.zeros(2, 2, dtype=torch.uint8), "segment_starts": STARTS,
         "segment_rows": ROWS},
        {"cu_length": 6},
        {"rows a feature less", "rows a column less", "segment_starts a row more"},
    ),
    "pack_spans": (
        pack_spans,
        {"buffer": torch.zeros(40, dtype=torch.uint16), "patches": torch.zeros(3, dtype=torch.uint16), **SPANS},
        {"context": 16, "pad_id": 1, "cu_length": 6},
        {"buffer a row less", "buffer a row more", "patches a row less", "patches a row more"},
    ),
}  # fmt: skip


def changes(x: Tensor) -> Iterator[tuple[str, Any]]:
    """What a caller may give by mistake in place of x."""
    yield "absent", None
    yield "a list", [1, 2]
    yield "a number", 3
    wide = x.float() if x.dtype.itemsize == 1 and x.is_floating_point() else x
    yield "of booleans", wide.bool()
    yield "complex", wide.to(torch.complex64)
    yield "of integers", wide.to(torch.int16)
    yield "wider", wide.double()
    yield "in E5M2", wide.float().to(torch.float8_e5m2)
    yield "elsewhere", x.to("meta")
    yield "sparse", wide.to(torch.int32 if x.dtype == torch.uint16 else wide.dtype).to_sparse()
    yield "a dimension more", x[None]
    if x.dim():
        yield "a dimension less", x.reshape(-1)[0] if x.dim() == 1 else x.flatten(0, 1)
        yield "a row less", x[:-1]
        yield "a row more", x[torch.arange(x.shape[0] + 1).clamp(max=x.shape[0] - 1)]
    if x.dim() > 1:
        yield "a feature less", x[..., :-1]
        yield "a column less", x[:, :-1]


@pytest.mark.parametrize("name", CALLS)
def test_a_spoilt_argument_is_named_before_anything_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, tensors, others, legal = CALLS[name]
    function(**tensors, **others)
    ran: list[str] = []
    resolve = dispatch.resolve

    def noted(op: str, *arguments: Any) -> str:
        ran.append(op)
        return resolve(op, *arguments)

    monkeypatch.setattr(dispatch, "resolve", noted)
    unheeded = []
    for argument, x in tensors.items():
        for change, spoilt in changes(x):
            ran.clear()
            try:
                function(**{**tensors, argument: spoilt}, **others)
            except (TypeError, ValueError) as error:
                message = str(error)
                # What tables on the host say, and values of lengths and pages, is checked in C++, before it writes.
                values = re.match(r"(lengths|page_table)\[", message) is not None
                assert not ran or ran == ["fim_pack"] or (ran == ["gqa_decode"] and values), (
                    f"{argument} {change}: found only after {ran[0]} was to run: {message}"
                )
                assert any(word in message for word in (*tensors, "segments", "spans")), (
                    f"{argument} {change}: names no argument: {message}"
                )
                assert f"{argument} {change}" not in legal
            else:
                unheeded.append(f"{argument} {change}")
    assert set(unheeded) <= legal, set(unheeded) - legal


@pytest.mark.parametrize("name", CALLS)
def test_a_backend_for_gpus_refuses_cpu_tensors(name: str) -> None:
    """By name, with the reason; and a backend that does not exist is named."""
    function, tensors, others, _ = CALLS[name]
    function(**tensors, **others)
    op = {"rms_norm": "norm", "add_rms_norm": "norm", "apply_rope": "rope", "swiglu": "glu", "cross_entropy": "ce",
          "linear_cross_entropy": "linear_ce", "rms_norm_fp8": "norm_fp8", "rms_norm_backward": "norm",
          "swiglu_fp8": "glu_fp8", "swiglu_backward": "glu", "quantize_fp8": "quantize", "fp8_matmul": "gemm",
          "fp8_linear": "gemm", "unpack_rows": "fim_pack", "pack_spans": "fim_pack", "gqa_attention": "gqa"}.get(
              name, "gqa_decode")  # fmt: skip
    on_gpus = {backend.name for backend in dispatch.ops()[op]} - {"ref", "cpu", "sdpa"}
    assert on_gpus
    for backend in on_gpus:
        with pytest.raises(ValueError, match=f"impl '{backend}' of '{op}' cannot run here: .*(GPU|CPU)"):
            function(**tensors, **others, impl=f"{op}={backend}")
    with pytest.raises(ValueError, match="impl 'warp_drive' is no backend"):
        function(**tensors, **others, impl="warp_drive")
