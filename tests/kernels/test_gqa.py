"""Attention over packed documents: every backend of this machine against plain torch in fp64, by the rule."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mify.kernels import checks, gqa_attention, last_impl
from mify.kernels.attention import gqa_libraries
from mify.testing import compare, cu_seqlens_of, layouts, ragged_lengths

IMPLS = ["cpu", "ref", "sdpa"]
# torch's own flash kernel for CPUs misses the rule by a little in fp32; it is held to three times the bound.
FACTOR = {"sdpa": 6.0}


def plain(lengths: list[int], causal: bool = True, window: int = 0, scale: float | None = None):  # type: ignore[no-untyped-def]
    """Independent oracle: torch's own SDPA, one document at a time, with an explicit mask."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        parts = []
        start = 0
        for n in lengths:
            s = slice(start, start + n)
            i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
            mask = (j <= i) if causal else torch.ones(n, n, dtype=torch.bool)
            if window:
                mask = mask & ((i - j).abs() < window)
            qs, ks, vs = (x[s].transpose(0, 1) for x in (q, k, v))
            ks, vs = ks.repeat_interleave(group, 0), vs.repeat_interleave(group, 0)
            scores = qs @ ks.transpose(1, 2) * (scale or 1 / math.sqrt(q.shape[2]))
            weights = F.softmax(scores.masked_fill(~mask, float("-inf")), -1)
            parts.append((weights @ vs).transpose(0, 1))
            start += n
        return torch.cat(parts)

    return attention


def inputs(
    tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(tokens, heads, dim, generator=g).to(dtype),
        torch.randn(tokens, kv_heads, dim, generator=g).to(dtype),
        torch.randn(tokens, kv_heads, dim, generator=g).to(dtype),
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (3, 3, 16), (5, 1, 128), (8, 2, 40)])
@pytest.mark.parametrize("causal", [True, False])
def test_forward_and_backward(impl: str, heads: int, kv_heads: int, dim: int, causal: bool) -> None:
    if impl == "cpu" and dim % 16:
        pytest.skip("a multiple of 16 is asked for")
    lengths = ragged_lengths(300, seed=heads)
    cu = cu_seqlens_of(lengths, padding=3)
    compare(
        lambda q, k, v: gqa_attention(q, k, v, cu, 300, causal=causal, impl=impl),
        plain(lengths, causal),
        inputs(300, heads, kv_heads, dim),
        factor=FACTOR.get(impl, 2.0),
    )
    assert last_impl("gqa") == impl


@pytest.mark.parametrize("impl", ["ref", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes(impl: str, dtype: torch.dtype) -> None:
    lengths = [33, 0, 90, 1]
    cu = cu_seqlens_of(lengths)
    compare(lambda q, k, v: gqa_attention(q, k, v, cu, 128, impl=impl), plain(lengths), inputs(124, 4, 2, 32, dtype))


@pytest.mark.parametrize("impl", ["cpu", "ref"])
@pytest.mark.parametrize("window", [1, 2, 17, 64, 1000])
@pytest.mark.parametrize("causal", [True, False])
def test_sliding_window(impl: str, window: int, causal: bool) -> None:
    lengths = [70, 1, 129]
    cu = cu_seqlens_of(lengths)
    compare(
        lambda q, k, v: gqa_attention(q, k, v, cu, 256, causal=causal, window=window, impl=impl),
        plain(lengths, causal, window),
        inputs(200, 4, 2, 16),
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_any_layout(impl: str) -> None:
    lengths = [40, 23]
    cu = cu_seqlens_of(lengths)
    q, k, v = inputs(63, 4, 2, 16)
    expected = gqa_attention(q, k, v, cu, 64, impl=impl)
    for name, q2 in layouts(q):
        for (_, k2), (_, v2) in zip(layouts(k), list(layouts(v))[::-1], strict=True):
            got = gqa_attention(q2, k2, v2, cu, 64, impl=impl)
            torch.testing.assert_close(got, expected, msg=name)
    expanded = torch.randn(63, 1, 16).expand(63, 2, 16)
    torch.testing.assert_close(
        gqa_attention(q, expanded, v, cu, 64, impl=impl), gqa_attention(q, expanded.clone(), v, cu, 64, impl=impl)
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_a_strided_incoming_gradient(impl: str) -> None:
    cu = cu_seqlens_of([30, 10])
    for strided in (False, True):
        q, k, v = (x.requires_grad_() for x in inputs(40, 4, 2, 16))
        grad = torch.randn(16, 4, 40, generator=torch.Generator().manual_seed(1)).permute(2, 1, 0)
        gqa_attention(q, k, v, cu, 64, impl=impl).backward(grad if strided else grad.contiguous())
        if not strided:
            expected = q.grad
    torch.testing.assert_close(q.grad, expected)


@pytest.mark.parametrize("impl", [impl for impl in IMPLS if impl != "sdpa"])  # torch's loses three digits here
def test_large_scores_and_own_scale(impl: str) -> None:
    q, k, v = inputs(65, 2, 1, 32)
    cu = cu_seqlens_of([65])
    compare(
        lambda q, k, v: gqa_attention(q, k, v, cu, 65, scale=3.0, impl=impl),
        plain([65], scale=3.0),
        (q * 3, k * 3, v),
        factor=FACTOR.get(impl, 2.0),
    )


def test_no_tokens_and_only_empty_documents() -> None:
    q, k, v = (x.requires_grad_() for x in inputs(0, 4, 2, 16))
    out = gqa_attention(q, k, v, torch.zeros(4, dtype=torch.int32), 16)
    out.sum().backward()
    assert out.shape == (0, 4, 16)
    assert q.grad is not None
    assert q.grad.shape == q.shape


def test_opcheck() -> None:
    q, k, v = (x.requires_grad_() for x in inputs(40, 4, 2, 16))
    cu = cu_seqlens_of([13, 0, 27])
    for impl in ("cpu", "sdpa", "ref"):
        torch.library.opcheck(torch.ops.mify.gqa_attention, (q, k, v, cu, 64, True, 0, 0.25, False, impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_backward_is_the_same_twice_and_for_any_number_of_threads(impl: str) -> None:
    cu = cu_seqlens_of([100, 60])
    grads = []
    before = torch.get_num_threads()
    for threads in (1, 1, 2, 3):
        torch.set_num_threads(threads)
        q, k, v = (x.requires_grad_() for x in inputs(160, 4, 2, 32))
        gqa_attention(q, k, v, cu, 128, deterministic=True, impl=impl).square().sum().backward()
        grads.append((q.grad, k.grad, v.grad))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for later in grads[1:] for a, b in zip(grads[0], later, strict=True))


def test_the_code_without_avx2_gives_the_same() -> None:
    """MIFY_CPU_DISABLE is read once, so the other path runs in a process of its own."""
    code = """
import torch, mify._core
from mify.kernels import gqa_attention, add_rms_norm, swiglu, linear_cross_entropy
g = torch.Generator().manual_seed(0)
q, k, v, x, w = (torch.randn(*s, generator=g) for s in ((150, 4, 32), (150, 2, 32), (150, 2, 32), (150, 37), (37,)))
cu = torch.tensor([0, 60, 60, 149, 150], dtype=torch.int32)
outs = [gqa_attention(q.requires_grad_(), k.requires_grad_(), v, cu, 90)]
outs += torch.autograd.grad(outs[0].square().sum(), (q, k))
outs += add_rms_norm(x.requires_grad_(), x, w.requires_grad_())
outs += torch.autograd.grad(outs[3].square().sum(), (x, w), retain_graph=True)
outs += [swiglu(x, x), linear_cross_entropy(x, x[:99], torch.arange(150) % 99)[0]]
outs += torch.autograd.grad(outs[-1], x)
print([o.double().flatten().tolist() for o in outs])
"""
    results = []
    for disable in ("", "avx2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "MIFY_CPU_DISABLE": disable},
            capture_output=True,
            text=True,
            check=True,
        )
        results.append([torch.tensor(x) for x in json.loads(done.stdout)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": [1]}, TypeError, "q is a list"),
        ({"q": torch.zeros(8, 64)}, ValueError, "q has shape"),
        ({"q": torch.zeros(8, 4, 16, dtype=torch.int64)}, TypeError, "q has dtype"),
        ({"k": torch.zeros(8, 2, 16, dtype=torch.float16)}, ValueError, "k has dtype"),
        ({"k": torch.zeros(8, 2, 16, device="meta")}, ValueError, "k is on meta"),
        ({"k": torch.zeros(7, 2, 16), "v": torch.zeros(7, 2, 16)}, ValueError, "k has shape"),
        ({"v": torch.zeros(8, 1, 16)}, ValueError, "k has shape"),
        ({"k": torch.zeros(8, 3, 16), "v": torch.zeros(8, 3, 16)}, ValueError, "multiple"),
        ({"k": torch.zeros(8, 0, 16), "v": torch.zeros(8, 0, 16)}, ValueError, "multiple"),
        ({"cu_seqlens": torch.tensor([0, 8])}, TypeError, "cu_seqlens has dtype torch.int64"),
        ({"cu_seqlens": torch.tensor([1, 8], dtype=torch.int32)}, ValueError, "must begin with 0"),
        ({"cu_seqlens": torch.tensor([0, 5, 3, 8], dtype=torch.int32)}, ValueError, "falls from 5 to 3 at index 2"),
        ({"cu_seqlens": torch.tensor([0, 9], dtype=torch.int32)}, ValueError, "ends with 9"),
        ({"cu_seqlens": torch.tensor([0, 7], dtype=torch.int32)}, ValueError, "ends with 7"),
        ({"cu_seqlens": torch.tensor([], dtype=torch.int32)}, ValueError, "must begin with 0"),
        ({"max_seqlen": 7}, ValueError, "segment of 8 tokens; max_seqlen is 7"),
        ({"max_seqlen": 0}, ValueError, "max_seqlen is 0"),
        ({"window": -1}, ValueError, "window is -1"),
        ({"scale": 0.0}, ValueError, "scale is 0.0"),
        ({"scale": math.nan}, ValueError, "scale is nan"),
        ({"impl": "fast"}, ValueError, "no backend of 'gqa'"),
        ({"impl": "sdpa", "window": 4}, ValueError, "it has no sliding window"),
        ({"impl": "triton"}, ValueError, "it needs a GPU, or TRITON_INTERPRET=1|triton is not installed"),
        ({"impl": "gqa=cudnn"}, ValueError, "it runs on a GPU"),
        ({"q": torch.zeros(8, 4, 16).to_sparse()}, TypeError, "q has the layout torch.sparse_coo"),
        ({"q": torch.zeros(8, 0, 16)}, ValueError, "multiple"),
        ({name: torch.zeros(8, 2, 0) for name in "qkv"}, ValueError, "head dimension must be positive"),
        ({"q": torch.zeros(8, 4, 16, dtype=torch.complex64)}, TypeError, "q has dtype torch.complex64"),
        ({"q": torch.zeros(8, 4, 16).bfloat16()}, ValueError, "k has dtype torch.float32 but q has torch.bfloat16"),
        ({"q": torch.zeros(8, 4, 32)}, ValueError, "k has shape"),
        ({"cu_seqlens": torch.tensor([[0, 8]], dtype=torch.int32)}, ValueError, "cu_seqlens has shape"),
        ({"cu_seqlens": torch.tensor([0, -3, 8], dtype=torch.int32)}, ValueError, "falls from 0 to -3 at index 1"),
        ({"cu_seqlens": torch.tensor([0, 8], dtype=torch.int32, device="meta")}, ValueError, "cu_seqlens is on meta"),
        ({"cu_seqlens": [0, 8]}, TypeError, "cu_seqlens is a list"),
        ({"max_seqlen": 8.0}, TypeError, "max_seqlen is 8.0"),
        ({"window": 2.5}, TypeError, "window is 2.5"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], error: type[Exception], words: str) -> None:
    arguments: dict[str, object] = {
        "q": torch.zeros(8, 4, 16),
        "k": torch.zeros(8, 2, 16),
        "v": torch.zeros(8, 2, 16),
        "cu_seqlens": torch.tensor([0, 8], dtype=torch.int32),
        "max_seqlen": 8,
    }
    with pytest.raises(error, match=words):
        gqa_attention(**{**arguments, **change})  # type: ignore[arg-type]


def test_memory_that_overlaps_or_lies_askew_is_read_right() -> None:
    """Heads that share memory, rows that share memory, and a storage that begins at an odd address."""
    cu = cu_seqlens_of([20, 11])
    q = inputs(31, 4, 2, 16)[0]
    pool = torch.randn(31 * 16 + 64)
    shared = pool.as_strided((31, 2, 16), (16, 8, 1), 3)  # a head begins in the middle of the other, rows overlap
    expected = plain([20, 11])(q, shared.clone(), shared.clone())
    for impl in IMPLS:
        torch.testing.assert_close(gqa_attention(q, shared, shared, cu, 32, impl=impl), expected)
        leaf = pool.clone().requires_grad_()
        view = leaf.as_strided((31, 2, 16), (16, 8, 1), 3)
        gqa_attention(q, view, view, cu, 32, impl=impl).sum().backward()
        other = pool.clone().requires_grad_()
        view = other.as_strided((31, 2, 16), (16, 8, 1), 3)
        plain([20, 11])(q, view, view).sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad)


def test_bounds_changed_in_place_are_read_again() -> None:
    q, k, v = inputs(8, 4, 2, 16)
    cu = torch.tensor([0, 4, 8], dtype=torch.int32)
    first = gqa_attention(q, k, v, cu, 8)
    cu[1] = 2
    torch.testing.assert_close(gqa_attention(q, k, v, cu, 8), plain([2, 6])(q, k, v))
    assert not torch.equal(first, gqa_attention(q, k, v, cu, 8))
    cu[1] = 9
    with pytest.raises(ValueError, match="falls from 9 to 8"):
        gqa_attention(q, k, v, cu, 8)


def test_a_captured_graph_reads_the_bounds_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a capture makes of cu_seqlens is part of the graph: neither taken from memory nor kept for later calls."""
    cu = cu_seqlens_of([3, 0, 5])
    bounds = checks.segment_bounds(cu, 8, 8)
    known = checks.remembered("edges", cu, lambda: "before")
    docs = gqa_libraries.documents(cu, bounds, 8)
    assert docs.cu_seqlens.tolist() == [0, 3, 8]
    monkeypatch.setattr(checks, "captures", lambda x: True)
    assert checks.remembered("edges", cu, lambda: "in the graph") == "in the graph"
    assert gqa_libraries.documents(cu, bounds, 8).cu_seqlens is cu
    assert checks.segment_bounds(cu, 8, 8) == bounds
    with pytest.raises(ValueError, match="call the function with this tensor once before"):
        checks.segment_bounds(cu.clone(), 8, 8)
    monkeypatch.undo()
    assert checks.remembered("edges", cu, lambda: "after") == known


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["triton", "fa2", "fa3", "fa4", "torch_flash"])
def test_a_captured_graph_follows_other_documents(impl: str) -> None:
    q, k, v = (x.cuda().requires_grad_() for x in inputs(300, 4, 2, 64, torch.bfloat16))
    grad = torch.randn_like(q)
    cu = cu_seqlens_of([100, 200], padding=2, device="cuda")

    def run() -> tuple[Tensor, ...]:
        out = gqa_attention(q, k, v, cu, 300, impl=f"gqa={impl}")
        return out, *torch.autograd.grad(out, (q, k, v), grad)

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    try:
        with torch.cuda.stream(side):
            run()
    except ValueError as error:
        pytest.skip(str(error))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    for lengths in ([100, 200], [300], [1, 0, 150, 149]):
        cu.copy_(cu_seqlens_of(lengths, padding=4 - len(lengths), device="cuda"))
        graph.replay()
        expected = gqa_attention(q, k, v, cu, 300, impl="ref")
        gradients = torch.autograd.grad(expected, (q, k, v), grad)
        for a, b in zip(got, (expected, *gradients), strict=True):
            torch.testing.assert_close(a, b, rtol=3e-2, atol=3e-2)
