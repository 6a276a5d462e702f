"""One token a row of logits: greedy, or drawn with a number that depends on seed and position alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mify.data.philox import Purpose, philox_block

from .request import SamplingParams

BAD = -1
"""Stands for a token where the logits are NaN or infinite."""
_NARROW = 256  # how many of the likeliest tokens are sorted at first; most nuclei end there


def uniforms(seed: int, first: int, count: int) -> NDArray[np.float64]:
    """(count,) numbers in [0, 1), those of the positions from `first` on: Philox 4x32-10 of (seed, position)."""
    words = philox_block(seed, first, count, Purpose.SAMPLING)
    return (words[0].astype(np.float64) + words[1].astype(np.float64) / 2**32) / 2**32


def choose(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> Tensor:
    """(N,) int64 tokens for logits (N, V); `BAD` where a row's logits are NaN or infinite.

    Args:
        params: of each row. draws: of each row, in [0, 1); not used at temperature 0.
    """
    best, tokens = logits.max(-1)
    sampled = [row for row, how in enumerate(params) if how.temperature > 0]
    if sampled:
        all_rows = len(sampled) == len(params)
        rows = None if all_rows else torch.tensor(sampled, device=logits.device)
        drawn = _draw(
            logits if rows is None else logits[rows],
            [params[row] for row in sampled],
            torch.tensor([draws[row] for row in sampled], dtype=torch.float32, device=logits.device),
        )
        tokens = drawn if rows is None else tokens.index_copy_(0, rows, drawn)
    return tokens.masked_fill_(~best.isfinite(), BAD)


def _draw(logits: Tensor, params: Sequence[SamplingParams], draws: Tensor) -> Tensor:
    device = logits.device
    heat = torch.tensor([how.temperature for how in params], dtype=torch.float32, device=device)
    probabilities = torch.softmax(logits.float() / heat[:, None], -1)
    if any(how.top_k or how.top_p < 1 or how.min_p for how in params):
        probabilities = probabilities * (probabilities >= _least(probabilities, params)[:, None])
    sums = probabilities.cumsum(-1)
    total = sums[:, -1:]
    # Strictly below the total, whatever the rounding: so there is a token whose sum is above it.
    targets = torch.minimum(draws[:, None] * total, total * (1 - 2.0**-23))
    return torch.searchsorted(sums, targets, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)


def _least(probabilities: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """(N,) the least probability that a token may have. Equally likely tokens stay or go together."""
    device, vocabulary = probabilities.device, probabilities.shape[1]
    top_k = torch.tensor([min(how.top_k or vocabulary, vocabulary) for how in params], device=device)
    top_p = torch.tensor([how.top_p for how in params], dtype=torch.float32, device=device)
    min_p = torch.tensor([how.min_p for how in params], dtype=torch.float32, device=device)
    most = max((how.top_k for how in params if how.top_k), default=0)
    width = min(vocabulary, max(_NARROW, most))
    nuclei = any(how.top_p < 1 for how in params)
    if nuclei and device.type != "cpu":
        width = vocabulary  # whether fewer would do is not known here without waiting for the device
    while True:
        ordered = probabilities.topk(width, -1).values
        ranks = torch.arange(width, device=device)
        left = ordered * (ranks < top_k[:, None])
        # What top_k leaves in all; where it leaves everything that is 1.
        mass = torch.where(top_k < vocabulary, left.sum(-1), 1.0)
        before = left.cumsum(-1) - left
        inside = (before < (top_p * mass)[:, None]) & (ranks < top_k[:, None])
        if width == vocabulary or not bool((inside[:, -1] & (top_p < 1)).any()):
            break
        width = min(vocabulary, 8 * width)
    last = (inside.sum(-1) - 1).clamp_(min=0)
    limited = (top_p < 1) | (top_k < vocabulary)
    least = torch.where(limited, ordered.gather(1, last[:, None])[:, 0], 0.0)
    return torch.maximum(least, min_p * ordered[:, 0])


def logprobs_of(logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities under logits (N, V): those of `tokens` (N,), and the likeliest, values and ids (N, top)."""
    logits = logits.float()
    normalizer = torch.logsumexp(logits, -1, keepdim=True)
    own = logits.gather(1, tokens[:, None]) - normalizer
    values, ids = logits.topk(top, -1) if top else (own[:, :0], tokens[:, None][:, :0])
    return own[:, 0], values - normalizer, ids
