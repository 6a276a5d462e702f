"""FP8 linear layers: forward and gradients against fp64 on the same quantized operands, the recipes, bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mify.kernels import add_rms_norm, rms_norm, swiglu
from mify.kernels.gemm import scaling
from mify.kernels.gemm.linear import fp8_linear, fp8_norm_linears, fp8_swiglu_linear
from mify.kernels.gemm.scaling import INPUT, KINDS, WEIGHT, Delayed, current_scale, update
from mify.kernels.quantize.quantize import quantize_fp8
from mify.testing import max_error

T, K, N = 130, 192, 320


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def wide(x: Tensor, kind: str, *, turned: bool = False) -> Tensor:
    """What x is worth after quantization by the recipe, in fp64; `turned`: as the weight gradient sees it."""
    quantized = quantize_fp8(x, scale=None if kind == "block" else current_scale(x))
    return (quantized.wide_t()[:, : x.shape[0]].t() if turned else quantized.wide()).double()


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_gradients_are_those_of_the_quantized_operands(kind: Any) -> None:
    x, weight, grad = normal(T, K).requires_grad_(), normal(N, K, seed=1).requires_grad_(), normal(T, N, seed=2)
    state = Delayed.empty(4) if kind == "delayed" else None
    y = fp8_linear(x, weight, kind, state=state)
    dx, dw = torch.autograd.grad(y, (x, weight), grad)
    x_, w_ = x.detach(), weight.detach()
    exact = wide(x_, kind) @ wide(w_, kind).t()
    # dgrad sums over output features, so the weight is quantized along those; wgrad over tokens.
    exact_dx = wide(grad, kind) @ wide(w_, kind, turned=True)
    exact_dw = wide(grad, kind, turned=True).t() @ wide(x_, kind, turned=True)
    for got, right in ((y, exact), (dx, exact_dx), (dw, exact_dw)):
        assert max_error(got, right) <= 1e-5 * right.abs().max().item()
    # And all of it near the unquantized products.
    for got, right in ((y, x_ @ w_.t()), (dx, grad @ w_), (dw, grad.t() @ x_)):
        assert (got - right).norm() < 0.05 * right.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residual", [True, False])
def test_a_fused_norm_gives_the_bits_of_the_separate_one(kind: Any, residual: bool) -> None:
    given = [normal(T, K), normal(T, K, seed=1) if residual else None, 1 + normal(K, seed=2, scale=0.1)]
    weights = [normal(N, K, seed=3), normal(64, K, seed=4)]
    grads = [normal(T, N, seed=5), normal(T, 64, seed=6)] + ([normal(T, K, seed=7)] if residual else [])
    results = []
    for fused in (True, False):
        states = _ready_states(2) if kind == "delayed" else [None, None]
        leaves = [None if x is None else x.clone().requires_grad_() for x in (*given, *weights)]
        x, stream, norm_weight, w1, w2 = leaves
        assert x is not None
        if fused:
            outs = fp8_norm_linears(x, norm_weight, 1e-5, [w1, w2], kind, residual=stream, states=states, impl="ref")
        else:
            total: tuple[Tensor, ...] = ()
            if stream is None:
                y = rms_norm(x, norm_weight, 1e-5, impl="ref")
            else:
                y, added = add_rms_norm(x, stream, norm_weight, 1e-5, impl="ref")
                total = (added,)
            # The first layer's input scale is everyone's.
            second = _with_input_scale_of(states[1], states[0])
            outs = (
                fp8_linear(y, w1, kind, state=states[0]), fp8_linear(y, w2, kind, state=second), *total,
            )  # fmt: skip
        wanted = [leaf for leaf in leaves if leaf is not None]
        results.append([*outs, *torch.autograd.grad(outs, wanted, grads)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)


def _ready_states(count: int) -> list[Delayed | None]:
    return [dataclasses.replace(Delayed.empty(4), scale=torch.tensor([0.01, 0.01, 0.01]), ready=True)] * count


def _with_input_scale_of(state: Delayed | None, other: Delayed | None) -> Delayed | None:
    return other if state is not None else None


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_swiglu_gives_the_bits_of_the_separate_one(kind: Any) -> None:
    results = []
    for fused in (True, False):
        gate, up, weight = (normal(*shape, seed=seed).requires_grad_() for seed, shape in
                            enumerate([(T, K), (T, K), (N, K)]))  # fmt: skip
        state = _ready_states(1)[0] if kind == "delayed" else None
        if fused:
            y = fp8_swiglu_linear(gate, up, weight, kind, state=state, impl="ref")
        else:
            y = fp8_linear(swiglu(gate, up, impl="ref"), weight, kind, state=state, impl="ref")
        results.append([y, *torch.autograd.grad(y, (gate, up, weight), normal(T, N, seed=9))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)


def test_delayed_scales_follow_the_history() -> None:
    state = Delayed.empty(3)
    weight = normal(N, K, seed=1)
    peaks = [4.0, 8.0, 2.0, 1.0, 1.0, 1.0]
    scales = []
    for peak in peaks:
        x = normal(T, K).clamp(-1, 1)
        x[0, 0] = peak
        fp8_linear(x, weight, "delayed", state=state)
        fp8_linear(x / 2, weight, "delayed", state=state)  # a second micro-batch does not push the first one out
        update([state])
        state = dataclasses.replace(state, ready=scaling.ready(dataclasses.replace(state, history=state.history[:2])))
        scales.append(state.scale[INPUT].item() * 448)
    assert scales == pytest.approx([4, 8, 8, 8, 2, 1])
    assert state.scale[WEIGHT].item() == pytest.approx(weight.abs().max().item() / 448)
    assert state.amax.tolist() == [0, 0, 0]


def test_an_infinite_value_does_not_spoil_the_history() -> None:
    state = Delayed.empty(3)
    state.amax.copy_(torch.tensor([2.0, 1.0, 1.0]))
    update([state])
    state.amax.copy_(torch.tensor([float("inf"), float("nan"), 4.0]))
    update([state])
    assert (state.scale * 448).tolist() == pytest.approx([2.0, 1.0, 4.0])


def test_what_is_saved_for_backward_does_not_change_with_the_scales() -> None:
    state = _ready_states(1)[0]
    assert state is not None
    x, weight = normal(T, K).requires_grad_(), normal(N, K, seed=1).requires_grad_()
    y = fp8_linear(x, weight, "delayed", state=state)
    before = torch.autograd.grad(y, weight, torch.ones_like(y), retain_graph=True)[0]
    state.scale[INPUT] = 100.0
    state.scale[WEIGHT] = 100.0
    assert torch.equal(torch.autograd.grad(y, weight, torch.ones_like(y))[0], before)


def test_a_cached_weight_is_quantized_once() -> None:
    cache: dict[str, Any] = {}
    x, weight = normal(T, K).requires_grad_(), normal(N, K, seed=1).requires_grad_()
    first = fp8_linear(x, weight, cache=cache)
    kept = cache["weight"]
    second = fp8_linear(x, weight, cache=cache)
    assert cache["weight"] is kept
    assert torch.equal(first, second)
    second.sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        weight.mul_(2)
    cache.clear()
    torch.testing.assert_close(fp8_linear(x, weight, cache=cache), 2 * first)


def test_one_token_and_frozen_weights() -> None:
    x = normal(1, K).requires_grad_()
    weight = normal(N, K, seed=1)
    y = fp8_linear(x, weight)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert dx.shape == x.shape
    with torch.no_grad():
        assert torch.equal(fp8_linear(x, weight), y)


def test_nan_comes_through() -> None:
    x = normal(T, K)
    x[3, 5] = float("nan")
    y = fp8_linear(x, normal(N, K, seed=1))
    assert y[3].isnan().all()
    assert y[:3].isfinite().all()


@pytest.mark.parametrize("kind", ["block", "current"])
def test_it_compiles_whole(kind: Any) -> None:
    norm_weight = torch.ones(K)
    w1, w2, w3 = normal(N, K, seed=1), normal(N, K, seed=2), normal(K, N, seed=3)

    def layer(x: Tensor, stream: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
        gate, up, total = fp8_norm_linears(x, norm_weight, 1e-5, [w1, w2], kind, residual=stream)
        return fp8_swiglu_linear(gate, up, w3, kind) + total

    leaves = [x.requires_grad_() for x in (normal(T, K), normal(T, K, seed=5), w1, w2, w3)]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    eager, ours = layer(*leaves), compiled(*leaves)
    torch.testing.assert_close(ours, eager)
    for one, other in zip(
        torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(eager.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, 24), torch.zeros(16, 24)), "multiples of 16"),
        ((torch.zeros(4, 32), torch.zeros(20, 32)), "multiples of 16"),
        ((torch.zeros(4, 32), torch.zeros(16, 48)), "x has 32 features"),
        ((torch.zeros(4, 32, dtype=torch.float16), torch.zeros(16, 32)), "x has dtype"),
        ((torch.zeros(4, 32), torch.zeros(16, 32), "hourly"), "the recipes are"),
        ((torch.zeros(4, 32), torch.zeros(16, 32), "delayed"), "state is None"),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fp8_linear(*arguments)


def test_every_layer_of_a_shared_input_gets_its_history() -> None:
    states = [Delayed.empty(2), Delayed.empty(2)]
    x, weights = normal(T, K).requires_grad_(), [normal(N, K, seed=1), normal(64, K, seed=2)]
    for _ in range(2):  # the first step is not fused, the second is
        outs = fp8_norm_linears(x, torch.ones(K), 1e-5, weights, "delayed", states=states)
        torch.autograd.grad(outs, x, [torch.ones_like(out) for out in outs])
        update(states)
        states = [dataclasses.replace(state, ready=scaling.ready(state)) for state in states]
        assert all(state.ready for state in states)
    assert torch.equal(states[0].history[INPUT], states[1].history[INPUT])


def test_histories_hold_gradients_without_the_ranks_factor() -> None:
    states = [Delayed.empty(3) for _ in range(2)]
    for state, factor in zip(states, (1.0, 8.0), strict=True):
        state.amax.copy_(torch.tensor([1.0, 2.0, 3.0 * factor]))
        update([state], gradient_factor=factor)
        assert (state.scale * 448).tolist() == pytest.approx([1.0, 2.0, 3.0 * factor])
    assert torch.equal(states[0].history, states[1].history)
    scaling.set_scales(states[:1], gradient_factor=8.0)  # eight ranks go on with what one saved
    assert torch.equal(states[0].scale, states[1].scale)
