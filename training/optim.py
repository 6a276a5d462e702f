"""AdamW with decoupled decay groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from .config import OptimizerSection, ScheduleSection


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay pulls on a parameter: matrices yes; norms and the input embedding no."""
    return parameter.ndim >= 2 and not name.endswith("embed_tokens.weight")


def make_optimizer(model: nn.Module, config: OptimizerSection) -> torch.optim.AdamW:
    """AdamW in two groups, decayed and not, over the trainable parameters in `named_parameters` order.

    `fused=True` is one kernel for all parameters on CUDA and one vectorised pass each on a CPU.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for name, p in named if decays(name, p)], "weight_decay": config.weight_decay},
            {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleSection) -> float:
    """The rate of update `step` (from 0) of `steps`.

    warm-up:  peak (step + 1) / warmup_steps
    cosine:   peak (floor + (1 - floor) (1 + cos(pi x)) / 2), x over the steps after the warm-up
    wsd:      peak, then over the last `decay_steps` peak (1 - (1 - floor) sqrt(x)) or, linear, peak (1 - (1 - floor) x)
    x reaches 1, and the rate its floor, in the last update.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "cosine":
        x = (step + 1 - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
        return peak * (schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, x))))
    decay_steps = schedule.decay_steps if schedule.decay_steps is not None else max(1, steps // 10)
    x = (step + 1 - (steps - decay_steps)) / decay_steps if decay_steps else 0.0
    if x <= 0:
        return peak
    x = min(1.0, x)
    return peak * (1 - (1 - schedule.floor) * (math.sqrt(x) if schedule.decay_shape == "sqrt" else x))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives all groups the rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
