# mypy: disable-error-code="no-untyped-def"
"""Cross-entropy in Triton: a program reads a row of logits for its loss, and once more (from the cache, where loss and
gradient are made in one launch) to write its gradient.

A label that is neither a class nor `ignore_index` gives NaN, in the loss and in the gradient: it cannot be refused
without waiting for the device, and it must not pass for a number.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mify.kernels.ahead import LAUNCH, Case
from mify.kernels.launch import Launch, chosen, dense, on


@triton.jit
def _row_kernel(
    logits_ptr,  # (rows, classes)
    labels_ptr,  # (rows,) int64
    grad_ptr,  # (rows,) incoming gradient
    loss_ptr,  # (rows,) fp32
    lse_ptr,  # (rows,) fp32: written with the loss, read where only the gradient is made
    dlogits_ptr,  # (rows, classes); may be logits itself
    logits_row,
    dlogits_row,
    classes,
    ignore_index,
    z_loss,
    smoothing,
    LOSS: tl.constexpr,
    GRADIENT: tl.constexpr,
    SCALED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_row
    dlogits_ptr += row * dlogits_row
    label = tl.load(labels_ptr + row)
    labelled = label != ignore_index
    good = (label >= 0) & (label < classes)
    if LOSS:
        at_label = tl.load(logits_ptr + label, mask=good, other=float("nan")).to(tl.float32)
        top = float("-inf")
        total = 0.0
        all_logits = 0.0
        for start in range(0, classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(logits_ptr + column, mask=column < classes, other=float("-inf")).to(tl.float32)
            now = tl.maximum(top, tl.max(x, 0))
            # A block of logits that are all minus infinity (classes that were ruled out) adds nothing; without a finite
            # base it would add NaN.
            base = tl.where(now == float("-inf"), 0.0, now)
            total = total * tl.exp(top - base) + tl.sum(tl.exp(x - base), 0)
            top = now
            if SMOOTHED:
                all_logits += tl.sum(tl.where(column < classes, x, 0.0), 0)
        log_total = tl.log(total)
        lse = top + log_total
        loss = (top - at_label) + log_total
        if SMOOTHED:
            loss = (1.0 - smoothing) * loss + smoothing * (lse - all_logits / classes)
        loss += z_loss * lse * lse
        tl.store(loss_ptr + row, tl.where(labelled, loss, 0.0))
        tl.store(lse_ptr + row, lse)
        of_probability = (1.0 + 2.0 * z_loss * lse) / total
    else:
        lse = tl.load(lse_ptr + row)
        top = lse
        of_probability = 1.0 + 2.0 * z_loss * lse
    if GRADIENT:
        scale = tl.where(labelled, 1.0, 0.0)
        if SCALED:
            scale *= tl.load(grad_ptr + row).to(tl.float32)
        scale = tl.where(labelled & (good == 0), float("nan"), scale)
        for start in range(0, classes, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(logits_ptr + column, mask=column < classes, other=float("-inf"))
            d = tl.exp(x.to(tl.float32) - top) * of_probability
            if SMOOTHED:
                d -= smoothing / classes
            d = tl.where(column == label, d - (1.0 - smoothing), d)
            # A row without a label may hold anything, so its gradient is set, not multiplied, to zero.
            d = tl.where(scale == 0.0, 0.0, d * scale)
            tl.store(dlogits_ptr + column, d.to(x.dtype), mask=column < classes)


def launches(classes: int) -> tuple[Launch, ...]:
    """How it may be launched: logits of a block, and warps; a row of fewer logits takes one block."""
    whole = triton.next_power_of_2(classes)
    if whole <= 16_384:
        return ({"BLOCK": whole, "num_warps": min(16, max(1, whole // 1024))},)
    pairs = ((16_384, 16), (8192, 8), (8192, 16), (32_768, 32))
    return tuple({"BLOCK": block, "num_warps": count} for block, count in pairs)


def forward(
    logits: Tensor, labels: Tensor, ignore_index: int, z_loss: float, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Per-row loss, 0 without a label, and log-normalizer, both (N,) fp32."""
    logits = dense(logits)
    rows, classes = logits.shape
    loss, lse = logits.new_empty(rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.float32)
    if rows:
        with on(logits):
            _row_kernel[(rows,)](
                logits, labels, None, loss, lse, logits, logits.stride(0), 0, classes, ignore_index, z_loss, smoothing,
                LOSS=True, GRADIENT=False, SCALED=False, SMOOTHED=smoothing > 0,
                **chosen("ce forward", logits, classes, launches(classes)), **LAUNCH,
            )  # fmt: skip
    return loss, lse


def backward(
    grad: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, ignore_index: int, z_loss: float, smoothing: float
) -> Tensor:
    """dlogits (N, V) in the dtype of logits for `grad` (N,) and the log-normalizer that `forward` gave."""
    logits = dense(logits)
    rows, classes = logits.shape
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if rows:
        with on(logits):
            _row_kernel[(rows,)](
                logits, labels, grad.contiguous(), None, lse.contiguous(), dlogits, logits.stride(0),
                dlogits.stride(0), classes, ignore_index, z_loss, smoothing,
                LOSS=False, GRADIENT=True, SCALED=True, SMOOTHED=smoothing > 0,
                **chosen("ce backward", logits, classes, launches(classes)), **LAUNCH,
            )  # fmt: skip
    return dlogits


def loss_and_gradient_(
    logits: Tensor, labels: Tensor, ignore_index: int, z_loss: float, smoothing: float, gradient: bool
) -> Tensor:
    """Per-row loss (N,) fp32; with `gradient`, dense logits (N, V) become the gradient of the sum of the losses."""
    rows, classes = logits.shape
    loss, lse = logits.new_empty(rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.float32)
    if rows:
        with on(logits):
            _row_kernel[(rows,)](
                logits, labels, None, loss, lse, logits, logits.stride(0), logits.stride(0), classes, ignore_index,
                z_loss, smoothing, LOSS=True, GRADIENT=gradient, SCALED=False, SMOOTHED=smoothing > 0,
                **chosen("ce forward and gradient", logits, classes, launches(classes)), **LAUNCH,
            )  # fmt: skip
    return loss


def cases() -> list[Case]:
    """The shipped configurations, for compilation ahead: the vocabulary of the presets, logits in bf16."""
    shape = launches(65_536)[0]
    found = []
    for name, loss, gradient, scaled in (
        ("ce forward", True, False, False),
        ("ce backward", False, True, True),
        ("ce forward and gradient", True, True, False),
    ):
        found.append(
            Case(
                name,
                _row_kernel,
                {
                    "logits_ptr": "*bf16",
                    "labels_ptr": "*i64",
                    "grad_ptr": "*fp32",
                    "loss_ptr": "*fp32",
                    "lse_ptr": "*fp32",
                    "dlogits_ptr": "*bf16",
                    "logits_row": "i32*16",
                    "dlogits_row": "i32*16",
                    "classes": "i32*16",
                    "ignore_index": "i32",
                    "z_loss": "fp32",
                    "smoothing": "fp32",
                },
                {"LOSS": loss, "GRADIENT": gradient, "SCALED": scaled, "SMOOTHED": False, "BLOCK": shape["BLOCK"]},
                num_warps=shape["num_warps"],
            )
        )
    return found
