"""Cross-entropy of logits, with z-loss and label smoothing.

For logits x and label y: lse = log Σ exp x_j, and the row's loss is
(1 − s)·(lse − x_y) + s·(lse − mean x) + z·lse²  with label smoothing s (Szegedy et al. 2016) and z-loss z
(PaLM, Chowdhery et al. 2022, section 5). Rows whose label is `ignore_index` cost nothing and get a zero gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mify.kernels import checks, dispatch

from . import ce_ref

dispatch.register("ce", dispatch.Backend("triton", dispatch.triton_refuses), dispatch.Backend("ref", lambda *_: ""))


@torch.library.custom_op("mify::cross_entropy", mutates_args=())
def _op(
    logits: Tensor, labels: Tensor, ignore_index: int, z_loss: float, smoothing: float, impl: str
) -> tuple[Tensor, Tensor]:
    labelled = check_labels(labels, logits.shape[1], ignore_index)
    backend = dispatch.resolve("ce", impl, logits, {"vocab": logits.shape[1]})
    if backend == "triton":
        from . import ce_triton

        return ce_triton.forward(logits, labels.contiguous(), ignore_index, z_loss, smoothing)
    loss, lse = ce_ref.forward(logits, labels, z_loss, smoothing)
    return torch.where(labelled, loss, 0.0), lse


@_op.register_fake
def _(logits, labels, ignore_index, z_loss, smoothing, impl):  # type: ignore[no-untyped-def]
    row = logits.new_empty(labels.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
    return row, torch.empty_like(row)


@torch.library.custom_op("mify::cross_entropy_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    lse: Tensor,
    ignore_index: int,
    z_loss: float,
    smoothing: float,
    impl: str,
) -> Tensor:
    if dispatch.resolve("ce", impl, logits, {"vocab": logits.shape[1]}) == "triton":
        from . import ce_triton

        return ce_triton.backward(grad, logits, labels.contiguous(), lse, ignore_index, z_loss, smoothing)
    dlogits = ce_ref.backward(grad, logits, labels, lse, z_loss, smoothing)
    return torch.where((labels != ignore_index)[:, None], dlogits, 0.0)


@_backward_op.register_fake
def _(grad, logits, labels, lse, ignore_index, z_loss, smoothing, impl):  # type: ignore[no-untyped-def]
    return logits.new_empty(logits.shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    logits, labels, *ctx.rest = inputs
    ctx.save_for_backward(logits, labels, output[1])


def _autograd(ctx, grad, _grad_lse):  # type: ignore[no-untyped-def]
    logits, labels, lse = ctx.saved_tensors
    return _backward_op(grad, logits, labels, lse, *ctx.rest), None, None, None, None, None


_op.register_autograd(_autograd, setup_context=_setup)


def check_labels(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """(N,) bool: which rows have a label. On a CPU a label that is no class raises ValueError."""
    labelled = labels != ignore_index
    if labels.device.type == "cpu" and labels.numel():
        wrong = labelled & ((labels < 0) | (labels >= classes))
        if bool(wrong.any()):
            index = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"labels[{index}] is {int(labels[index])}; it must be 0 to {classes - 1}, or {ignore_index} for none"
            )
    return labelled


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "sum",
    impl: str = "auto",
) -> Tensor:
    """Cross-entropy; differentiable in logits.

    Args:
        logits: (N, V) floating. labels: (N,) int64, same device: a class or `ignore_index`.
        z_loss, label_smoothing: see above; off by default.
        reduction: "sum" → a scalar, "none" → (N,) with 0 where there is no label; both fp32 (fp64 for fp64).
        impl: see `mify.kernels.dispatch`.

    Raises:
        TypeError, ValueError: naming the argument. On a GPU a label that is no class cannot be refused without waiting:
            there the loss and the row's gradient are NaN.
    """
    checks.tensor("logits", logits, dims=2)
    checks.tensor("labels", labels, dims=1)
    checks.floating("logits", logits)
    checks.integer("labels", labels, torch.int64)
    checks.same("labels", labels, "logits", logits, dtype=False)
    if labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels has {labels.shape[0]} elements; logits {tuple(logits.shape)} asks for {logits.shape[0]}"
        )
    check_options(logits.shape[1], z_loss, label_smoothing)
    if reduction not in ("sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; it must be 'sum' or 'none'")
    rows: Tensor = _op(logits, labels, ignore_index, z_loss, label_smoothing, impl)[0]
    return rows.sum() if reduction == "sum" else rows


def check_options(classes: int, z_loss: float, label_smoothing: float) -> None:
    """Raises ValueError unless classes ≥ 1, z_loss ≥ 0 and 0 ≤ label_smoothing < 1."""
    if not classes:
        raise ValueError("there are 0 classes; there must be at least one")
    if not z_loss >= 0:
        raise ValueError(f"z_loss is {z_loss}; it must be 0 (off) or positive")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be at least 0 (off) and below 1")
