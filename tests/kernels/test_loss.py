"""Cross-entropy, of logits and fused with the output layer, against torch's own and against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mify.kernels import cross_entropy, linear_cross_entropy, linear_log_probs
from mify.kernels.loss import ce_ref, linear_ce_ref
from mify.testing import assert_as_exact_as_torch, compare, layouts

OPTIONS = [{}, {"z_loss": 1e-2}, {"label_smoothing": 0.1}, {"z_loss": 1e-2, "label_smoothing": 0.2}]


RUNS = [("cpu", torch.float32), *(("ref", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16))]


def plain(labels: Tensor, z_loss: float = 0.0, label_smoothing: float = 0.0, reduction: str = "sum"):  # type: ignore[no-untyped-def]
    def loss(logits: Tensor) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        rows = F.cross_entropy(wide, labels, reduction="none", label_smoothing=label_smoothing)
        rows = rows + z_loss * torch.logsumexp(wide, -1).square() * (labels != -100)
        return rows.sum() if reduction == "sum" else rows

    return loss


def some_labels(rows: int, classes: int) -> Tensor:
    labels = torch.randint(0, classes, (rows,))
    labels[::3] = -100
    return labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_cross_entropy(dtype: torch.dtype, options: dict[str, float], reduction: str) -> None:
    labels = some_labels(40, 101)
    compare(
        lambda x: cross_entropy(x, labels, reduction=reduction, **options),
        plain(labels, reduction=reduction, **options),
        ((torch.randn(40, 101) * 3).to(dtype),),
    )


@pytest.mark.parametrize(("impl", "dtype"), RUNS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("chunk", [0, 1, 7, 64])
def test_linear_cross_entropy(impl: str, dtype: torch.dtype, options: dict[str, float], chunk: int) -> None:
    labels = some_labels(40, 101)
    hidden, weight = torch.randn(40, 24).to(dtype), torch.randn(101, 24).to(dtype)
    compare(
        lambda h, w: linear_cross_entropy(h, w, labels, chunk_rows=chunk, impl=impl, **options)[0],
        lambda h, w: plain(labels, **options)(h @ w.t()),
        (hidden, weight),
    )
    assert linear_cross_entropy(hidden, weight, labels)[1] == (labels != -100).sum()


def test_many_chunks_do_not_lose_a_narrow_weight_gradient() -> None:
    """A sum kept in bf16 over hundreds of chunks stalls; ours is kept in fp32 and rounded once."""
    hidden = torch.rand(512, 8).bfloat16()
    weight = torch.randn(16, 8).bfloat16()
    labels = torch.zeros(512, dtype=torch.int64)
    exact_hidden, exact_weight = hidden.double(), weight.double().requires_grad_()
    exact = torch.autograd.grad(F.cross_entropy(exact_hidden @ exact_weight.t(), labels, reduction="sum"), exact_weight)
    leaf = weight.clone().requires_grad_()
    got = torch.autograd.grad(linear_cross_entropy(hidden, leaf, labels, chunk_rows=1)[0], leaf)
    leaf = weight.clone().requires_grad_()
    torch_grad = torch.autograd.grad(F.cross_entropy((hidden @ leaf.t()).float(), labels, reduction="sum"), leaf)
    assert_as_exact_as_torch(got, torch_grad, exact)


@pytest.mark.parametrize("impl", ["cpu", "ref"])
def test_large_logits(impl: str) -> None:
    labels = torch.randint(0, 9, (12,))
    hidden, weight = torch.randn(12, 4) * 100, torch.randn(9, 4) * 10
    compare(
        lambda h, w: linear_cross_entropy(h, w, labels, impl=impl)[0],
        lambda h, w: plain(labels)(h @ w.t()),
        (hidden, weight),
    )


def test_rows_without_label_cost_nothing_and_get_zero() -> None:
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    labels = torch.full((9,), -100)
    loss, count = linear_cross_entropy(hidden, weight, labels)
    loss.backward()
    assert (loss.item(), count.item()) == (0.0, 0)
    assert not hidden.grad.any()
    assert not weight.grad.any()

    poisoned = torch.randn(9, 4)
    poisoned[2] = float("nan")
    labels = torch.randint(0, 5, (9,))
    labels[2] = -100
    leaf = poisoned.requires_grad_()
    loss, count = linear_cross_entropy(leaf, weight, labels)
    loss.backward()
    assert loss.isfinite()
    assert count == 8
    assert not leaf.grad[2].any()
    assert leaf.grad[3].any()


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight, labels = torch.randn(9, 4), torch.randn(5, 4, requires_grad=True), torch.randint(0, 5, (9,))
    with torch.no_grad():
        loss, _ = linear_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, linear_cross_entropy(hidden, weight, labels)[0].detach())


def test_only_one_of_the_two_may_need_a_gradient() -> None:
    labels = torch.randint(0, 5, (9,))
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(5, 4)
    linear_cross_entropy(hidden, weight, labels)[0].backward()
    expected = torch.autograd.grad(F.cross_entropy(hidden @ weight.t(), labels, reduction="sum"), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected)


@pytest.mark.parametrize("impl", ["cpu", "ref"])
def test_a_frozen_weight_gets_no_gradient_and_changes_nothing_else(impl: str) -> None:
    labels = torch.randint(0, 50, (40,)).where(torch.rand(40) < 0.3, -100)
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    frozen = weight.detach()
    whole, half = (linear_cross_entropy(hidden, w, labels, impl=impl)[0] for w in (weight, frozen))
    assert torch.equal(whole, half)
    assert torch.equal(torch.autograd.grad(whole, hidden)[0], torch.autograd.grad(half, hidden)[0])
    _, _, dhidden, dweight = torch.ops.mify.linear_cross_entropy(
        hidden.detach(), frozen, labels, -100, 0.0, 0.0, 16, True, False, impl
    )
    assert dhidden.shape == hidden.shape
    assert dweight.numel() == 0


def test_scaled_loss_scales_gradients_and_backward_may_run_twice() -> None:
    labels = torch.randint(0, 5, (9,))
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss, count = linear_cross_entropy(hidden, weight, labels)
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    scaled = torch.autograd.grad(loss / count, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(loss, (hidden, weight))
    for a, b, c in zip(once, scaled, again, strict=True):
        torch.testing.assert_close(a / 9, b)
        assert torch.equal(a, c)


def test_any_layout() -> None:
    labels = torch.randint(0, 24, (20,))
    x, w = torch.randn(20, 24), torch.randn(24, 24)
    expected = plain(labels)(x)
    expected_linear = plain(labels)(x @ w.t())
    for name, y in layouts(x):
        torch.testing.assert_close(cross_entropy(y, labels), expected, msg=name)
        for _, weight in layouts(w):
            torch.testing.assert_close(linear_cross_entropy(y, weight, labels)[0], expected_linear, msg=name)


def test_opcheck() -> None:
    labels = torch.tensor([1, -100, 3])
    logits = torch.randn(3, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.mify.cross_entropy, (logits, labels, -100, 0.1, 0.1, "auto"))
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for impl in ("cpu", "ref"):
        arguments = (hidden, weight, labels, -100, 0.0, 0.0, 2, True, True, impl)
        torch.library.opcheck(torch.ops.mify.linear_cross_entropy, arguments, test_utils=tests)


X, W, Y = torch.zeros(3, 4), torch.zeros(5, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((X, W, Y.int()), {}, TypeError, "labels has dtype"),
        ((X, W, Y[:2]), {}, ValueError, "labels has 2 elements"),
        ((X, W, torch.tensor([0, 5, 1])), {}, ValueError, r"labels\[1\] is 5; it must be 0 to 4"),
        ((X, W, torch.tensor([0, -1, 1])), {}, ValueError, r"labels\[1\] is -1"),
        ((X, W[:, :3], Y), {}, ValueError, "weight has shape"),
        ((X, W.half(), Y), {}, ValueError, "weight has dtype"),
        ((X[0], W, Y), {}, ValueError, "hidden has shape"),
        ((X, W, Y), {"z_loss": -1.0}, ValueError, "z_loss"),
        ((X, W, Y), {"label_smoothing": 1.0}, ValueError, "label_smoothing"),
        ((X, W, Y), {"chunk_rows": -1}, ValueError, "chunk_rows"),
    ],
)
def test_mistakes_are_named(arguments: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        linear_cross_entropy(*arguments, **options)


def test_a_label_that_is_no_class_is_nan_where_it_cannot_be_refused() -> None:
    """As on a GPU: in the row's loss and gradient, whatever else is in the batch, and without an index out of range."""
    logits, labels = torch.randn(4, 5), torch.tensor([2, 5, -1, 0])
    bad = torch.tensor([False, True, True, False])
    loss, lse = ce_ref.forward(logits, labels, 0.1, 0.1)
    gradient = ce_ref.backward(torch.ones(4), logits, labels, lse, 0.1, 0.1)
    assert torch.equal(loss.isnan(), bad)
    assert torch.equal(gradient.isnan(), bad[:, None].expand(4, 5))
    loss, dhidden, _ = linear_ce_ref.forward(logits, W[:, :1].expand(5, 5), labels, 0.0, 0.0, 3, True, True)
    assert loss.isnan()
    assert torch.equal(dhidden.isnan(), bad[:, None].expand(4, 5))


def test_a_row_without_a_label_may_hold_anything() -> None:
    logits = torch.randn(3, 5)
    logits[1] = float("nan")
    leaf = logits.requires_grad_()
    cross_entropy(leaf, torch.tensor([2, -100, 0]), impl="ref").backward()
    assert leaf.grad is not None
    assert (leaf.grad[1] == 0).all()
    assert leaf.grad.isfinite().all()


def test_mistakes_of_cross_entropy_are_named() -> None:
    for arguments, options, error, words in (
        ((X, torch.tensor([0, 4, 1])), {}, ValueError, r"labels\[1\] is 4"),
        ((X, Y), {"reduction": "mean"}, ValueError, "reduction"),
        ((X.long(), Y), {}, TypeError, "logits has dtype"),
        ((X, Y[:1]), {}, ValueError, "labels has 1"),
        ((X[:, :0], Y), {}, ValueError, "0 classes"),
    ):
        with pytest.raises(error, match=words):
            cross_entropy(*arguments, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk", [0, 1, 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_linear_log_probs(dtype: torch.dtype, chunk: int, temperature: float) -> None:
    labels = some_labels(40, 101)
    hidden, weight = (torch.randn(40, 24) * temperature).to(dtype), torch.randn(101, 24).to(dtype)

    def plainly(h: Tensor, w: Tensor) -> Tensor:
        logits = h @ w.t()
        logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
        return -F.cross_entropy(logits, labels, reduction="none")

    compare(
        lambda h, w: linear_log_probs(h, w, labels, temperature=temperature, chunk_rows=chunk)[0],
        plainly,
        (hidden, weight),
    )
    _, entropy = linear_log_probs(hidden, weight, labels, temperature=temperature)
    spread = torch.softmax((hidden @ weight.t()).float() / temperature, -1)
    expected = -(spread * spread.log()).sum(-1) * (labels != -100)
    assert torch.allclose(entropy, expected, atol=1e-4)


def test_a_frozen_output_layer_gets_no_gradient() -> None:
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(5, 8)
    linear_log_probs(hidden, weight, torch.zeros(4, dtype=torch.int64))[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_linear_log_probs_checks_what_it_gets() -> None:
    hidden, weight, labels = torch.randn(4, 8), torch.randn(5, 8), torch.zeros(4, dtype=torch.int64)
    assert linear_log_probs(hidden, weight, torch.full((4,), -100))[0].tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="temperature is 0"):
        linear_log_probs(hidden, weight, labels, temperature=0.0)
    with pytest.raises(ValueError, match="labels \\(3,\\)"):
        linear_log_probs(hidden, weight, labels[:3])
    with pytest.raises(ValueError, match=r"labels\[0\] is 7"):
        linear_log_probs(hidden, weight, labels + 7)
