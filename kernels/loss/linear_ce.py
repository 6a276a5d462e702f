"""Output layer and cross-entropy in one: Σ over labelled rows of ce(hidden · weightᵀ, label).

The logits are made, used and dropped in chunks of rows. Rows without a label are taken out before the product, so a
batch pays for supervised tokens only. The gradients are computed in the forward pass, while a chunk's probabilities
are at hand, and scaled by the incoming gradient in the backward pass; that of a frozen weight is not computed. See `ce`
for the loss itself.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from mify.kernels import checks, cpu, dispatch

from . import ce, linear_ce_cpu, linear_ce_ref

dispatch.register(
    "linear_ce",
    dispatch.Backend("cpu", cpu.refuses),
    dispatch.Backend("triton", dispatch.triton_refuses),
    dispatch.Backend("ref", lambda *_: ""),
)


def _backend(impl: str, hidden: Tensor, weight: Tensor) -> ModuleType:
    name = dispatch.resolve("linear_ce", impl, hidden, {"vocab": weight.shape[0], "size": weight.shape[1]})
    if name == "triton":
        from . import linear_ce_triton

        return linear_ce_triton
    return linear_ce_cpu if name == "cpu" else linear_ce_ref


@torch.library.custom_op("mify::linear_cross_entropy", mutates_args=())
def _op(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    ignore_index: int,
    z_loss: float,
    smoothing: float,
    chunk: int,
    gradients: bool,
    weight_gradient: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labelled = ce.check_labels(labels, weight.shape[0], ignore_index)
    index = labelled.nonzero().squeeze(1)
    whole = index.shape[0] == labels.shape[0]
    rows, targets = (hidden, labels) if whole else (hidden[index], labels[index])
    loss, dhidden, dweight = _backend(impl, hidden, weight).forward(
        rows, weight, targets, z_loss, smoothing, chunk, gradients, weight_gradient
    )
    if gradients and not whole:
        dhidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format).index_copy_(0, index, dhidden)
    count = torch.tensor(index.shape[0], device=hidden.device)
    return loss, count, dhidden, dweight


@_op.register_fake
def _(hidden, weight, labels, ignore_index, z_loss, smoothing, chunk, gradients, weight_gradient, impl):  # type: ignore[no-untyped-def]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    dhidden = hidden.new_empty(hidden.shape if gradients else 0)
    dweight = weight.new_empty(weight.shape if weight_gradient else 0, dtype=wide)
    return hidden.new_empty((), dtype=wide), hidden.new_empty((), dtype=torch.int64), dhidden, dweight


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2], output[3])


def _autograd(ctx, grad, _grad_count, _grad_dhidden, _grad_dweight):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 10
    dhidden, dweight = ctx.saved_tensors
    of_weight = (dweight * grad).to(ctx.dtypes[1]) if ctx.needs_input_grad[1] else None
    return (dhidden * grad.to(dhidden.dtype), of_weight, *(None,) * 8)


_op.register_autograd(_autograd, setup_context=_setup)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_rows: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Loss of the output layer; differentiable in hidden and weight.

    Args:
        hidden: (N, d) floating. weight: (V, d), same dtype and device. labels: (N,) int64: a class or `ignore_index`.
        z_loss, label_smoothing: see `ce`; off by default.
        chunk_rows: rows of logits that exist at once; 0 chooses by the device.
        impl: see `mify.kernels.dispatch`.

    Returns:
        The sum of the losses, fp32 (fp64 for fp64), and the number of labelled rows, int64; both scalar tensors.

    Raises:
        TypeError, ValueError: naming the argument. On a GPU a label that is no class makes the loss NaN.
    """
    checks.tensor("hidden", hidden, dims=2)
    checks.tensor("weight", weight, dims=2)
    checks.tensor("labels", labels, dims=1)
    checks.floating("hidden", hidden)
    checks.same("weight", weight, "hidden", hidden)
    checks.integer("labels", labels, torch.int64)
    checks.same("labels", labels, "hidden", hidden, dtype=False)
    if weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; hidden {tuple(hidden.shape)} asks for (V, {hidden.shape[1]})"
        )
    if labels.shape[0] != hidden.shape[0]:
        raise ValueError(
            f"labels has {labels.shape[0]} elements; hidden {tuple(hidden.shape)} asks for {hidden.shape[0]}"
        )
    checks.whole_number("chunk_rows", chunk_rows)
    if chunk_rows < 0:
        raise ValueError(f"chunk_rows is {chunk_rows}; it must be positive, or 0 to choose by the device")
    ce.check_options(weight.shape[0], z_loss, label_smoothing)
    # On a CPU a chunk of logits should stay in the last-level cache; on a GPU it should fill the matrix units.
    chunk = chunk_rows or (512 if hidden.device.type == "cpu" else 4096)
    gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss, count, _, _ = _op(
        hidden, weight, labels, ignore_index, z_loss, label_smoothing, chunk, gradients,
        gradients and weight.requires_grad, impl,
    )  # fmt: skip
    return loss, count
