"""How kernels are judged: a tolerance that is a rule, memory that is poisoned, layouts and lengths that are awkward.

The rule: against fp64, a kernel's error may be at most twice the error of plain torch in the same dtype. So a bound is
never guessed, and a kernel cannot be wrong by less than a generous constant.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Tensors = Tensor | Sequence[Tensor]


def assert_as_exact_as_torch(
    actual: Tensors, plain: Tensors, exact: Tensors, *, factor: float = 2.0, names: Sequence[str] = ()
) -> None:
    """Raises AssertionError unless max|actual − exact| ≤ factor · max|plain − exact| + rounding, for each tensor.

    Args:
        actual: what the kernel gave. plain: what plain torch gave in the same dtype. exact: plain torch in fp64.
        factor: 2 by the rule.
        names: of the tensors, for the message.

    Rounding is half a unit in the last place of the largest value, because plain torch may hit the rounded result
    exactly; in fp32 it is four, because there another order of summation has no wider type to hide in. NaN and infinity
    fail unless `exact` has the same.
    """
    groups = [[x] if isinstance(x, Tensor) else list(x) for x in (actual, plain, exact)]
    assert len(groups[0]) == len(groups[1]) == len(groups[2]), "as many tensors from the kernel as from torch"
    for index, (a, p, e) in enumerate(zip(*groups, strict=True)):
        name = names[index] if index < len(names) else f"result {index}"
        assert a.shape == e.shape, f"{name} has shape {tuple(a.shape)}, not {tuple(e.shape)}"
        assert a.dtype == p.dtype, f"{name} has dtype {a.dtype}, not {p.dtype}"
        assert e.dtype == torch.float64, f"the exact {name} must be float64"
        if not a.numel():
            continue
        ours, theirs = max_error(a, e), max_error(p, e)
        largest = e[e.isfinite()].abs().max().item() if e.isfinite().any() else 0.0
        rounding = torch.finfo(a.dtype).eps * largest * (4 if a.dtype == torch.float32 else 0.5)
        assert ours <= factor * theirs + rounding, (
            f"{name}: error {ours:.3e}; plain torch has {theirs:.3e}, rounding {rounding:.1e}"
        )


def max_error(actual: Tensor, exact: Tensor) -> float:
    """max |actual − exact| in fp64; infinite where one is NaN or infinite and the other is not the same."""
    wide = actual.detach().to(torch.float64).to(exact.device)
    equal = (wide == exact) | (wide.isnan() & exact.isnan())
    difference = torch.where(equal, 0.0, (wide - exact).abs())
    return float(torch.nan_to_num(difference, nan=float("inf"), posinf=float("inf")).max())


def compare(
    kernel: Callable[..., Tensors],
    plain: Callable[..., Tensors],
    inputs: Sequence[Tensor],
    *,
    gradients: Sequence[int] | None = None,
    factor: float = 2.0,
    seed: int = 0,
) -> None:
    """Runs kernel and plain torch forward and backward on the same inputs, in poisoned memory, and applies the rule.

    Args:
        kernel, plain: functions of the inputs; plain must also run in fp64.
        inputs: floating ones are given to the exact run in fp64.
        gradients: which inputs are differentiated; None is all floating ones.
        seed: of the incoming gradients.
    """
    floating = [i for i, x in enumerate(inputs) if x.is_floating_point()] if gradients is None else list(gradients)

    def run(function: Callable[..., Tensors], wide: bool) -> list[Tensor]:
        leaves = []
        for index, x in enumerate(inputs):
            x = x.detach()
            if wide and x.is_floating_point():
                x = x.double()
            leaves.append(x.requires_grad_() if index in floating else x)
        with poisoned_memory():
            outs = function(*leaves)
            outs = [outs] if isinstance(outs, Tensor) else list(outs)
            generator = torch.Generator().manual_seed(seed)
            grads = [torch.randn(out.shape, generator=generator) for out in outs]
            # Rounded to the narrow dtype first, so that the exact run differentiates along the same direction.
            grads = [grad.to(inputs[0].dtype).to(out.device, out.dtype) for grad, out in zip(grads, outs, strict=True)]
            kept = [grad.clone() for grad in grads]
            wanted = [leaves[index] for index in floating]
            got = torch.autograd.grad(outs, wanted, grads) if wanted else []
        assert all(torch.equal(a, b) for a, b in zip(grads, kept, strict=True)), "an incoming gradient was changed"
        return [out.detach() for out in outs] + list(got)

    before = [x.clone() for x in inputs]
    actual = run(kernel, False)
    for index, (x, kept) in enumerate(zip(inputs, before, strict=True)):
        assert torch.equal(x, kept), f"input {index} was changed"
    exact = run(plain, True)
    outs = len(actual) - len(floating)
    names = [f"output {i}" for i in range(outs)] + [f"gradient of input {i}" for i in floating]
    assert_as_exact_as_torch(actual, run(plain, False), exact, factor=factor, names=names)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within it, torch.empty and its kin come filled with NaN or the largest integer: what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values in other memory: permuted, with gaps between rows, misaligned, every other element."""
    yield "contiguous", x.contiguous()
    if x.dim() > 1:
        order = list(range(x.dim()))[::-1]
        yield "transposed", x.permute(order).contiguous().permute(order)
        wide = x.new_full((*x.shape[:-2], x.shape[-2], x.shape[-1] + 3), float("nan"))
        wide[..., 1 : x.shape[-1] + 1] = x
        yield "gaps between rows, misaligned", wide[..., 1 : x.shape[-1] + 1]
    if x.dim() == 3:
        yield "heads outermost", x.transpose(0, 1).contiguous().transpose(0, 1)
    every_other = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
    every_other[..., ::2] = x
    yield "every other element", every_other[..., ::2]


def ragged_lengths(total: int, seed: int, *, longest: int = 0, empty: bool = True) -> list[int]:
    """Document lengths that sum to `total`: ones, odd sizes, a full one, and (with `empty`) some of zero."""
    rng = random.Random(seed)
    lengths: list[int] = []
    left = total
    while left:
        length = min(left, rng.choice([1, 2, 15, 16, 17, 31, 64, 65, 100, 127, 129, 200]), longest or left)
        lengths.append(length)
        left -= length
        if empty and rng.random() < 0.3:
            lengths.append(0)
    return lengths


def cu_seqlens_of(lengths: Sequence[int], *, padding: int = 0, device: Any = "cpu") -> Tensor:
    """(len(lengths) + 1 + padding,) int32 bounds of documents of these lengths, padded by repeats of the total."""
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    return torch.tensor(bounds + [bounds[-1]] * padding, dtype=torch.int32, device=device)
