"""Attention in Triton against plain torch, by the rule; and the whole model on Triton's backends."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from mify.config import model_config
from mify.generate import generate
from mify.kernels import gqa_attention, last_impl
from mify.kernels.attention import gqa, gqa_ref, gqa_triton, gqa_triton_kernels
from mify.model import Model
from mify.testing import compare, cu_seqlens_of, layouts, ragged_lengths

ON_GPU = torch.cuda.is_available()


def reference(bounds: list[int], causal: bool, window: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Plain torch, differentiated by autograd."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        parts = []
        for start, end in itertools.pairwise(bounds):
            mask = gqa_ref.visible(end - start, causal, window, q.device)
            qs, ks, vs = (x[start:end].transpose(0, 1) for x in (q, k, v))
            scores = qs @ ks.repeat_interleave(group, 0).transpose(1, 2) * q.shape[2] ** -0.5
            weights = torch.softmax(scores.masked_fill(~mask, float("-inf")), -1)
            parts.append((weights @ vs.repeat_interleave(group, 0)).transpose(0, 1))
        return torch.cat(parts)

    return attention


def check(
    lengths: list[int], heads: int, kv_heads: int, dim: int, causal: bool, window: int, deterministic: bool,
    dtype: torch.dtype, device: str,
) -> None:  # fmt: skip
    cu = cu_seqlens_of(lengths, padding=2, device=device)
    q, k, v = (torch.randn(sum(lengths), n, dim, device=device).to(dtype) for n in (heads, kv_heads, kv_heads))
    compare(
        lambda q, k, v: gqa_attention(
            q, k, v, cu, 4096, causal=causal, window=window, deterministic=deterministic, impl="triton"
        ),
        reference(cu.tolist(), causal, window),
        (q, k, v),
    )
    assert last_impl("gqa") == "triton"


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "dim", "causal", "window"),
    [
        ([150, 0, 1, 33, 76], 2, 1, 64, True, 0),
        ([60, 0, 70], 2, 1, 128, False, 0),
        ([130, 50], 2, 2, 16, True, 40),
        ([70, 60], 3, 1, 40, False, 17),
    ],
)
def test_forward_and_backward(
    lengths: list[int],
    heads: int,
    kv_heads: int,
    dim: int,
    causal: bool,
    window: int,
    deterministic: bool,
    dtype: torch.dtype,
    device: str,
) -> None:
    if dtype == torch.float32 and not ON_GPU:
        lengths = [n // 2 for n in lengths]  # fp32's tiles are 32 wide, not 128: as many of them, in half the time
    check(lengths, heads, kv_heads, dim, causal, window, deterministic, dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_shapes(seed: int, dtype: torch.dtype, device: str) -> None:
    source = random.Random(seed)
    kv_heads, group = source.choice([(1, 1), (2, 3), (3, 1), (1, 7), (4, 2)])
    lengths = ragged_lengths(source.choice([33, 128, 129, 300]), seed)
    window = source.choice([0, 0, 2, 3, 63, 64, 1000])
    check(
        lengths, kv_heads * group, kv_heads, source.choice([8, 16, 24, 64, 96, 128]), source.random() < 0.7, window,
        source.random() < 0.5, dtype, device,
    )  # fmt: skip


def test_a_program_for_each_tile(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What long documents get; the tests above start few programs, with several tiles each."""
    monkeypatch.setattr(gqa, "LONG_DOCUMENTS", 1)
    grids = []
    real = gqa_triton._grid
    monkeypatch.setattr(gqa_triton, "_grid", lambda *a: grids.append((real(*a)[0], a[0])) or real(*a))
    check([70, 20], 2, 2, 16, True, 0, True, torch.float32, device)
    assert len(grids) == 3
    assert all(programs == units for programs, units in grids)


def test_any_layout(device: str) -> None:
    cu = cu_seqlens_of([40, 23], device=device)
    q, k, v = (torch.randn(63, h, 16, device=device) for h in (2, 1, 1))
    expected = reference(cu.tolist(), True, 0)(q, k, v)
    for (name, q2), (_, k2), (_, v2) in zip(layouts(q), layouts(k), list(layouts(v))[::-1], strict=True):
        torch.testing.assert_close(gqa_attention(q2, k2, v2, cu, 64, impl="triton"), expected, msg=name)
    # One head has any stride, one token too.
    odd = torch.empty_strided((63, 1, 16), (16, 3, 1), device=device).copy_(k)
    torch.testing.assert_close(gqa_attention(q, odd, v, cu, 64, impl="triton"), expected)
    one = torch.empty_strided((1, 2, 16), (5, 16, 1), device=device).copy_(q[:1])
    torch.testing.assert_close(gqa_attention(one, v[:1], v[:1], cu_seqlens_of([1], device=device), 1, impl="triton"),
                               v[:1].expand(1, 2, 16))  # fmt: skip


def test_a_token_that_sees_only_itself(device: str) -> None:
    """Its weight is 1 whatever the scores are: the gradients of q and k are 0, up to the rounding of two sums."""
    q, k, v = (torch.randn(40, h, 16, device=device, requires_grad=True) for h in (2, 1, 1))
    cu = cu_seqlens_of([33, 7], device=device)
    out = gqa_attention(q, k, v, cu, 64, window=1, impl="triton")
    torch.testing.assert_close(out, v.expand(40, 2, 16))
    dq, dk, dv = torch.autograd.grad(out.sum(), (q, k, v))
    assert max(dq.abs().max(), dk.abs().max()) < 1e-5
    torch.testing.assert_close(dv, torch.full_like(v, 2.0))


def test_no_tokens(device: str) -> None:
    q, k = (torch.zeros(0, h, 16, device=device, requires_grad=True) for h in (2, 1))
    gqa_attention(q, k, k, torch.zeros(3, dtype=torch.int32, device=device), 8, impl="triton").sum().backward()
    assert q.grad is not None
    assert q.grad.shape == (0, 2, 16)


def test_opcheck(device: str) -> None:
    q, k = (torch.randn(20, h, 16, device=device, requires_grad=True) for h in (2, 1))
    cu = cu_seqlens_of([13, 0, 7], device=device)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.mify.gqa_attention, (q, k, k, cu, 64, True, 0, 0.25, True, "triton"), test_utils=tests
    )


def test_deterministic_is_the_same_bits(device: str, dtype: torch.dtype) -> None:
    if dtype == torch.float32 and not ON_GPU:
        pytest.skip("the interpreter runs one program after another, so float16 says as much")
    lengths = [3000, 0, 900, 1] if ON_GPU else [50, 0, 14, 1]
    cu = cu_seqlens_of(lengths, device=device)
    grads = []
    for _ in range(4 if ON_GPU else 2):
        torch.manual_seed(1)
        q, k, v = (torch.randn(sum(lengths), h, 64, device=device).to(dtype).requires_grad_() for h in (4, 2, 2))
        out = gqa_attention(q, k, v, cu, 4096, deterministic=True, impl="triton")
        grads.append(torch.autograd.grad(out.square().sum(), (q, k, v)))
    assert all(torch.equal(a, b) for later in grads[1:] for a, b in zip(grads[0], later, strict=True))


@triton.jit
def _probe(start_ptr, end_ptr, out_ptr, tokens, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, KEYS: tl.constexpr,
           ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """What the kernels go through: begin, whole_begin, whole_end, end of each tile of ROWS."""
    tile = tl.program_id(0)
    row = tile * ROWS + tl.arange(0, ROWS)
    low, high = gqa_triton_kernels._reach(
        row, row < tokens, start_ptr, end_ptr, tokens, window, CAUSAL, WINDOW, KEYS
    )  # fmt: skip
    begin, whole_begin, whole_end, end = gqa_triton_kernels._runs(low, high, BLOCK)
    count, left, left_at, right_at = gqa_triton_kernels._blocks(begin, whole_begin, whole_end, end, True, BLOCK)
    for index in range(0, count):
        first = tl.where(index < left, left_at + index * BLOCK, right_at + (index - left) * BLOCK)
        tl.atomic_add(out_ptr + tile * 2 * tokens + first, 1)
    count, left, left_at, right_at = gqa_triton_kernels._blocks(begin, whole_begin, whole_end, end, False, BLOCK)
    for index in range(0, count):
        tl.atomic_add(out_ptr + (tile * 2 + 1) * tokens + right_at + index * BLOCK, 1)


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize(("causal", "window"), [(True, 0), (False, 0), (True, 13), (False, 30)])
def test_only_tiles_at_an_edge_are_masked(keys: bool, causal: bool, window: int, device: str) -> None:
    """Everything visible is visited once; what is visited without a mask is visible to every row of its tile."""
    rows, block = 16, 8
    for lengths in ([100], [30, 0, 1, 45, 24], [90, 10], [3] * 20):
        cu = cu_seqlens_of(lengths, device=device)
        tokens = sum(lengths)
        tiles = -(-tokens // rows)
        start, end = gqa_triton.edges(cu, tokens)
        visits = torch.zeros(tiles, 2, tokens, dtype=torch.int32, device=device)
        _probe[(tiles,)](start, end, visits, tokens, window, causal, window > 0, keys, rows, block)
        seen = torch.zeros(tokens, tokens, dtype=torch.bool)
        for a, b in itertools.pairwise(cu.tolist()):
            seen[a:b, a:b] = gqa_ref.visible(b - a, causal, window, torch.device("cpu"))
        seen = seen.T if keys else seen
        whole_blocks = 0
        for tile in range(tiles):
            inside = seen[tile * rows : (tile + 1) * rows]
            visited = torch.zeros(2, tokens + block, dtype=torch.int32)
            for masked, first in visits[tile].cpu().nonzero().tolist():
                visited[masked, first : first + block] += int(visits[tile, masked, first])
            assert (visited[1, tokens:] == 0).all()
            unmasked = visited[1, :tokens]
            assert (inside.all(0) | (unmasked == 0)).all(), "an unmasked block that some row must not see"
            assert len(inside) == rows or (unmasked == 0).all()
            assert (visited.sum(0)[:tokens] <= 1).all() or window, "visited twice"
            assert (visited.sum(0)[:tokens][inside.any(0)] == 1).all()
            whole_blocks += int(unmasked.sum()) // block
        if lengths == [100] and causal and not window and not keys:
            # Of the 1 + 3 + 5 + … blocks before the diagonal none is masked.
            assert whole_blocks == sum(tile * rows // block for tile in range(100 // rows))


def test_the_whole_model_on_triton(device: str) -> None:
    config = model_config(
        "mify-tiny", num_layers=1, hidden_size=32, head_dim=16, ffn_size=48, vocab_size=99, context=64
    )
    results = []
    for impl in ("triton", "ref"):
        model = Model(config, impl=impl).to(device)
        batch = _batch(device)
        loss, count = model.loss(batch)
        (loss / count).backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
        assert {last_impl(op) for op in ("gqa", "norm", "rope", "glu", "linear_ce")} == {impl}
        tokens = generate(model, [[3, 4], [5]], max_new_tokens=3)
        assert last_impl("gqa_decode") == impl
        results[-1].append(torch.tensor(tokens))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _batch(device: str):  # type: ignore[no-untyped-def]
    from mify.data.batch import PackedBatch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 99, (64,), generator=generator)
    labels = torch.randint(0, 99, (64,), generator=generator)
    positions = torch.cat([torch.arange(40), torch.arange(24)])
    return PackedBatch(tokens, labels, positions, cu_seqlens_of([40, 24], padding=1), 64).to(device)


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    """Index arithmetic beyond 2³¹, on a GPU that can hold it: the last document against plain torch."""
    if torch.cuda.get_device_properties(0).total_memory < 60 << 30:
        pytest.skip("it needs 60 GiB")
    documents, length = 520, 1024
    cu = cu_seqlens_of([length] * documents, device="cuda")
    q, k, v = (torch.randn(documents * length, h, 128, device="cuda", dtype=torch.bfloat16) for h in (32, 8, 8))
    assert q.numel() > 2**31
    last = slice((documents - 1) * length, None)
    expected = reference([0, length], True, 0)
    for deterministic in (True, False):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = gqa_attention(*leaves, cu, length, deterministic=deterministic, impl="triton")
        out.backward(out.detach())
        small = [x[last].detach().float().requires_grad_() for x in (q, k, v)]
        plain = expected(*small)
        plain.backward(out[last].detach().float())
        torch.testing.assert_close(out[last].float(), plain, rtol=2e-2, atol=2e-2)
        for a, b in zip(leaves, small, strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert (a.grad[last].float() - b.grad).norm() < 1e-2 * b.grad.norm()
        del leaves, out
