"""The gather-and-patch pass on the host: every backend the same bits as a plain loop over tokens."""

from __future__ import annotations

import pytest
import torch
from fim_pack_oracle import assert_same, random_inputs

from mify.kernels import last_impl
from mify.kernels.dispatch import Device, choose
from mify.kernels.packing import fim_pack_cost
from mify.kernels.packing.fim_pack import PADDING, pack_spans, unpack_rows

SHAPES = [(32, 1), (33, 3), (41, 2), (257, 2), (64, 5)]


@pytest.mark.parametrize("impl", ["ref", "cpu"])
@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32])
@pytest.mark.parametrize(("context", "rows"), SHAPES)
def test_it_equals_a_plain_loop(context: int, rows: int, dtype: torch.dtype, impl: str) -> None:
    for seed in range(6):
        given = random_inputs(seed, context, rows, dtype, behind=seed % 3, one_token=seed == 5)
        assert_same(unpack_rows(*given.rows, cu_length=given.cu_length, impl=impl), given.batch)
        assert_same(pack_spans(*given.spans, **given.options, impl=impl), given.batch)
        assert last_impl("fim_pack") == impl


def test_threads_do_not_change_it() -> None:
    given = random_inputs(3, 65, 40)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same(pack_spans(*given.spans, **given.options), given.batch)
        assert_same(unpack_rows(*given.rows, cu_length=given.cu_length), given.batch)
    finally:
        torch.set_num_threads(before)


def test_the_ops_are_registered_as_torch_asks() -> None:
    given = random_inputs(1, 32, 2)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.mify.unpack_rows.default, (*given.rows, given.cu_length, "ref"), test_utils=checks)
    options = (32, 1, [2, 3, 4], given.cu_length, "ref")
    torch.library.opcheck(torch.ops.mify.pack_spans.default, (*given.spans, *options), test_utils=checks)


def test_any_layout() -> None:
    given = random_inputs(2, 40, 3)
    wide = torch.zeros(3, 80, dtype=torch.uint16)
    wide[:, ::2] = given.rows[0]
    assert_same(unpack_rows(wide[:, ::2], *given.rows[1:], cu_length=given.cu_length), given.batch)


def test_the_choice_of_a_backend() -> None:
    shape = {"num_rows": 4, "context": 8192}
    hopper = Device("cuda", (9, 0))
    assert choose("fim_pack", "auto", hopper, torch.uint16, shape) == "cuda"
    missing = Device("cuda", (9, 0), {"cuda": "not built"})
    assert choose("fim_pack", "auto", missing, torch.uint16, shape) == "triton"
    assert choose("fim_pack", "auto", Device("cuda", (7, 5)), torch.uint16, shape) == "ref"
    assert choose("fim_pack", "auto", Device("cpu"), torch.uint16, shape) == "cpu"
    with pytest.raises(ValueError, match="it runs on a GPU"):
        choose("fim_pack", "cuda", Device("cpu"), torch.uint16, shape)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda x: x.to(torch.int64), "rows has dtype"),
        (0, lambda x: x.reshape(-1), "rows has shape"),
        (1, lambda x: x[:, :1], "loss_bits has shape"),
        (2, lambda x: x.to(torch.int64), "segment_starts has dtype"),
        (3, lambda x: x[:-1], "segment_rows has 2 entries"),
        (3, lambda x: x + 1, "segments: the first row begins at 1"),
        (3, lambda x: torch.zeros_like(x), "segments: row 0 has entries 0 to 0"),
        (2, lambda x: x * 2, "starts ascend from 0"),
        (2, lambda x: x.flip(0), "starts ascend from 0"),
    ],
)
def test_bad_rows_are_refused(which: int, change, message: str) -> None:  # type: ignore[no-untyped-def]
    given = random_inputs(0, 40, 2)
    arguments = list(given.rows)
    arguments[which] = change(arguments[which])
    with pytest.raises((TypeError, ValueError), match=message):
        unpack_rows(*arguments, cu_length=given.cu_length + 9)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda x: x.to(torch.int32), "buffer has dtype"),
        (0, lambda x: x[:30], "of the buffer of 30"),
        (1, lambda x: x.to(torch.uint32), "patches has dtype"),
        (1, lambda x: x[:1], "of patches of 1"),
        (2, lambda x: x[:-1], "span_starts has"),
        (2, lambda x: torch.where(x >= 0, 1 << 40, x), "spans: entry"),
        (2, lambda x: torch.where(x >= 0, PADDING + 1, x), "of patches of"),
        (3, lambda x: x + 1, "spans: entry 0 starts at 1"),
        (6, lambda x: x[:-1], "segment_loss has"),
    ],
)
def test_bad_spans_are_refused(which: int, change, message: str) -> None:  # type: ignore[no-untyped-def]
    given = random_inputs(4, 40, 2)
    arguments = list(given.spans)
    arguments[which] = change(arguments[which])
    with pytest.raises((TypeError, ValueError), match=message):
        pack_spans(*arguments, **given.options)


def test_bad_sizes_are_refused() -> None:
    given = random_inputs(0, 40, 2)
    segments = int(given.rows[3][-1])
    with pytest.raises(ValueError, match="segments do not fit in cu_seqlens"):
        unpack_rows(*given.rows, cu_length=segments)
    with pytest.raises(ValueError, match="cu_length is 2"):
        unpack_rows(*given.rows, cu_length=2)
    with pytest.raises(ValueError, match="at most 4"):
        pack_spans(*given.spans, **given.options | {"sentinels": [1, 2, 3, 4, 5]})
    with pytest.raises(ValueError, match="pad_id is -1"):
        pack_spans(*given.spans, **given.options | {"pad_id": -1})
    with pytest.raises(ValueError, match="2\\^31 or more"):
        pack_spans(*given.spans, **given.options | {"context": 1 << 30})


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["cuda", "triton", "ref"])
@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32])
@pytest.mark.parametrize(("context", "rows"), [*SHAPES, (2048, 3), (8192, 2)])
def test_a_gpu_gives_the_same_bits(context: int, rows: int, dtype: torch.dtype, impl: str) -> None:
    for seed in range(3):
        given = random_inputs(seed, context, rows, dtype, behind=seed)
        moved = [x.cuda() for x in given.rows]
        assert_same(unpack_rows(*moved, cu_length=given.cu_length, impl=impl), given.batch)
        moved = [x.cuda() for x in given.spans]
        assert_same(pack_spans(*moved, **given.options, impl=impl), given.batch)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["cuda", "triton"])
def test_a_span_beyond_the_buffer_gives_an_id_that_no_embedding_takes(impl: str) -> None:
    given = random_inputs(0, 64, 2)
    moved = [x.cuda() for x in given.spans]
    moved[2] = torch.where(moved[2] >= 0, 1 << 40, moved[2])
    tokens, labels, _, _ = pack_spans(*moved, **given.options, impl=impl)
    assert (tokens == -1).any()
    assert not (labels == -1).any()


@pytest.mark.gpu
def test_a_captured_launch_is_replayed_with_other_tables() -> None:
    first, second = (random_inputs(seed, 96, 4) for seed in (0, 1))
    size = max(x.spans[2].numel() for x in (first, second))
    segments = max(x.spans[5].numel() for x in (first, second))
    patches = max(x.spans[1].numel() for x in (first, second))
    buffer = max(x.spans[0].numel() for x in (first, second))
    sizes = [buffer, patches, size, size, 5, segments, segments, 5]

    def padded(x: torch.Tensor, length: int) -> torch.Tensor:
        out = torch.zeros(length, dtype=x.dtype)
        out[: x.numel()] = x
        return out.cuda()

    static = [padded(x, n) for x, n in zip(first.spans, sizes, strict=True)]
    options = first.options | {"cu_length": max(first.cu_length, second.cu_length)}
    pack_spans(*static, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch = pack_spans(*static, **options)
    for given in (second, first):
        for to, x, n in zip(static, given.spans, sizes, strict=True):
            to.copy_(padded(x, n))
        graph.replay()
        for a, b in zip(batch[:3], given.batch[:3], strict=True):
            assert torch.equal(a.cpu(), b)


def test_the_cost_counts_what_must_move() -> None:
    given = random_inputs(0, 64, 3)
    segments, tokens = given.rows[2].numel(), 3 * 64
    written = sum(x.nbytes for x in given.batch[:3]) + segments * 4
    found = fim_pack_cost.unpack_rows(tokens, segments)
    assert (found.flops, found.written) == (0, written)
    assert found.read == sum(x.nbytes for x in given.rows[:3])
    found = fim_pack_cost.pack_spans(tokens, segments, given.spans[2].numel())
    tables = sum(given.spans[i].nbytes for i in (2, 3, 5, 6))
    assert (found.read, found.written) == (tokens * 2 + tables, written)
