"""Rounding with error feedback (GPTQ; Frantar et al. 2022, arXiv 2210.17323): each column makes up for those before it.

With x the inputs of a linear layer and H = xᵀx over calibration tokens, ‖x·(Q − W)ᵀ‖² is lowered by rounding column
after column and moving what a column lost onto those to come, by the rows of the Cholesky factor of H⁻¹. Scales stay
those of plain rounding, so nothing of the stored layout changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: what calibration text did not show must not count as free."""
_COLUMNS = 128


def round_with_feedback(weight: Tensor, scale: Tensor, factor: Tensor, nearest: Callable[[Tensor], Tensor]) -> Tensor:
    """The codes (out, in) fp32 of a weight: `nearest` of what feedback makes of weight / scale.

    Args:
        weight: (out, in) fp32. scale: broadcastable to it, positive. factor: of `feedback_factor`.
        nearest: codes of scaled values, element by element, as fp32.
    """
    scale = scale.expand_as(weight)
    left = weight.clone()
    codes = torch.empty_like(weight)
    width = weight.shape[1]
    for start in range(0, width, _COLUMNS):
        end = min(start + _COLUMNS, width)
        errors = torch.empty(weight.shape[0], end - start)
        for column in range(start, end):
            values, step = left[:, column], scale[:, column]
            codes[:, column] = nearest(values / step)
            error = (values - codes[:, column] * step) / factor[column, column]
            left[:, column + 1 : end] -= error[:, None] * factor[column, column + 1 : end]
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    return codes


def feedback_factor(gram: Tensor) -> Tensor:
    """(in, in) fp32: the upper Cholesky factor of the inverse of the damped gram (in, in), xᵀx of the inputs."""
    damped = gram.double()
    diagonal = damped.diagonal()
    # A channel that never was other than zero: any rounding of it will do.
    diagonal += DAMPING * diagonal.mean().clamp(min=1e-30)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
