"""Output layer and log-probability in one: log softmax(hidden · weightᵀ / T) at each row's label, row by row.

What preference and reinforcement objectives weigh token by token. As in `linear_ce` rows without a label cost nothing
and the logits exist in chunks only; here they are made again in the backward pass, since the weight of a row's gradient
is not known before. The entropy −Σ p log p comes along, for it costs one more sum over a chunk that is at hand.
Matrix products are torch's on every device: there is one backend.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mify.kernels import checks

from . import ce
from .ce_ref import as_classes


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, index: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        rows, (targets, poison) = hidden[index], (x[:, None] for x in as_classes(labels[index], weight.shape[0], wide))
        found, entropies = rows.new_empty((2, rows.shape[0]), dtype=wide)
        for start in range(0, rows.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = (rows[part] @ weight.t()).to(wide).div_(temperature)
            each = torch.log_softmax(logits, -1)
            found[part] = (each.gather(1, targets[part]) + poison[part]).squeeze(1)
            entropies[part] = -(each.exp() * each).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, index)
        ctx.temperature, ctx.chunk = temperature, chunk
        log_probs = hidden.new_zeros(hidden.shape[0], dtype=wide).index_copy_(0, index, found)
        entropy = torch.zeros_like(log_probs).index_copy_(0, index, entropies)
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, index = ctx.saved_tensors
        rows, grad = hidden[index], grads[0][index, None] / ctx.temperature
        wide = grad.dtype
        drows = torch.empty_like(rows)
        dweight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if ctx.needs_input_grad[1] else None
        for start in range(0, rows.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = (rows[part] @ weight.t()).to(wide).div_(ctx.temperature)
            d = torch.softmax(logits, -1).neg_().mul_(grad[part])
            d.scatter_add_(1, targets[part], grad[part])
            narrow = d.to(rows.dtype)
            drows[part] = narrow @ weight
            if dweight is not None:
                dweight += narrow.t() @ rows[part]
        dhidden = torch.zeros_like(hidden).index_copy_(0, index, drows)
        return dhidden, None if dweight is None else dweight.to(weight.dtype), None, None, None, None


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    chunk_rows: int = 0,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the labels under the output layer; differentiable in hidden and weight.

    Args:
        hidden: (N, d) floating. weight: (V, d), same dtype and device. labels: (N,) int64: a class or `ignore_index`.
        temperature: logits are divided by it, as a sampler does.
        chunk_rows: rows of logits that exist at once; 0 chooses by the device.

    Returns:
        (N,) log-probabilities and (N,) entropies in nats, fp32 (fp64 for fp64), 0 where there is no label; no gradient
        flows through the entropies.

    Raises:
        TypeError, ValueError: naming the argument. On a GPU the log-probability of a label that is no class is NaN.
    """
    checks.tensor("hidden", hidden, dims=2)
    checks.tensor("weight", weight, dims=2)
    checks.tensor("labels", labels, dims=1)
    checks.floating("hidden", hidden)
    checks.same("weight", weight, "hidden", hidden)
    checks.integer("labels", labels, torch.int64)
    checks.same("labels", labels, "hidden", hidden, dtype=False)
    if weight.shape[1] != hidden.shape[1] or labels.shape[0] != hidden.shape[0]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and labels {tuple(labels.shape)}; hidden {tuple(hidden.shape)} "
            f"asks for (V, {hidden.shape[1]}) and ({hidden.shape[0]},)"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    index = ce.check_labels(labels, weight.shape[0], ignore_index).nonzero().squeeze(1)
    chunk = chunk_rows or (512 if hidden.device.type == "cpu" else 4096)
    found = _LinearLogProbs.apply(hidden, weight, labels, index, temperature, chunk)  # type: ignore[no-untyped-call]
    log_probs, entropy = found
    return log_probs, entropy
