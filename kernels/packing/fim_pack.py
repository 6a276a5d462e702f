"""The gather-and-patch pass: from packed rows, or straight from token buffers, to what a model eats.

For token t of a row, with s(t) the first token of its segment:
position_t = t − s(t); label_t = token_{t+1} where t + 1 lies in the same segment and carries loss as a target, else
−100.
Nothing is decided here: what is cut where, which fragment lies in which row and which tokens lie between the copies
was planned before (`mify.data.plan`). Everything is integers, so all backends give the same bits.

A batch of rows travels to a device as 2 bytes a token and a loss bit, and is widened there to the 24 bytes of int64
tokens, labels and positions: memory is the limit, 26 bytes a token. Where the shards' tokens lie on the device already,
`pack_spans` gathers from them, and only the plan's spans travel.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from mify.kernels import checks, dispatch

from . import fim_pack_ref
from .fim_pack_ref import PADDING, Batch, Spans

__all__ = ["MOST_SENTINELS", "PADDING", "pack_spans", "unpack_rows"]

MOST_SENTINELS = 4
TOKEN_TYPES = (torch.uint16, torch.uint32)


def _cuda_refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    if device.kind != "cuda":
        return "it runs on a GPU"
    if device.capability < (8, 0):
        return f"it needs compute capability 8.0, this GPU has {'.'.join(map(str, device.capability))}"
    if importlib.util.find_spec("mify._cuda") is None:
        return "mify._cuda is not built (no CUDA compiler was found when mify was installed)"
    return ""


def _cpu_refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    return "" if device.kind == "cpu" else "it runs on CPUs"


dispatch.register(
    "fim_pack",
    dispatch.Backend("cuda", _cuda_refuses),
    dispatch.Backend("cpu", _cpu_refuses),
    dispatch.Backend("triton", dispatch.triton_refuses),
    dispatch.Backend("ref", lambda *_: ""),
)


def _backend(impl: str, tokens: Tensor, num_rows: int, context: int) -> ModuleType:
    name = dispatch.resolve("fim_pack", impl, tokens, {"num_rows": num_rows, "context": context})
    if name == "cuda":
        from . import fim_pack_cuda

        return fim_pack_cuda
    if name == "triton":
        from . import fim_pack_triton

        return fim_pack_triton
    if name == "cpu":
        from . import fim_pack_cpu

        return fim_pack_cpu
    return fim_pack_ref


@torch.library.custom_op("mify::unpack_rows", mutates_args=())
def _unpack_op(
    rows: Tensor, loss_bits: Tensor, segment_starts: Tensor, segment_rows: Tensor, cu_length: int, impl: str
) -> Batch:
    backend = _backend(impl, rows, *rows.shape)
    result: Batch = backend.unpack_rows(rows, loss_bits, segment_starts, segment_rows, cu_length)
    return result


@_unpack_op.register_fake
def _(rows, loss_bits, segment_starts, segment_rows, cu_length, impl):  # type: ignore[no-untyped-def]
    return fim_pack_ref.outputs(rows, rows.numel(), cu_length)


@torch.library.custom_op("mify::pack_spans", mutates_args=())
def _pack_op(
    buffer: Tensor,
    patches: Tensor,
    span_source: Tensor,
    span_starts: Tensor,
    span_rows: Tensor,
    segment_starts: Tensor,
    segment_loss: Tensor,
    segment_rows: Tensor,
    context: int,
    pad_id: int,
    sentinels: Sequence[int],
    cu_length: int,
    impl: str,
) -> Batch:
    spans = Spans(
        buffer, patches, span_source, span_starts, span_rows, segment_starts, segment_loss, segment_rows
    )  # fmt: skip
    backend = _backend(impl, buffer, spans.num_rows, context)
    result: Batch = backend.pack_spans(spans, context, pad_id, sentinels, cu_length)
    return result


@_pack_op.register_fake
def _(buffer, *tables_and_sizes):  # type: ignore[no-untyped-def]
    segment_rows, context, _, _, cu_length, _ = tables_and_sizes[-6:]
    return fim_pack_ref.outputs(buffer, (segment_rows.numel() - 1) * context, cu_length)


def unpack_rows(
    rows: Tensor,
    loss_bits: Tensor,
    segment_starts: Tensor,
    segment_rows: Tensor,
    *,
    cu_length: int,
    impl: str = "auto",
) -> Batch:
    """Packed rows widened to a batch.

    Args:
        rows: (R, C) uint16 or uint32.
        loss_bits: (R, ceil(C / 8)) uint8, lowest bit first: the token is a target that carries loss. A segment's first
            token is nobody's target, whatever its bit says.
        segment_starts: (G,) int32, first token of each segment in its row, ascending from 0.
        segment_rows: (R + 1,) int64, first entry of each row in `segment_starts`; the last says how many there are
            (what lies behind is not looked at: a captured launch may be replayed with tables of one size).
        cu_length: entries of `cu_seqlens`: more than there are segments.
        impl: see `mify.kernels.dispatch`.

    Returns:
        tokens (R·C,) int64; labels (R·C,) int64, −100 for no loss; positions (R·C,) int64; cu_seqlens (cu_length,)
        int32, the segments' starts and then R·C.

    Raises:
        TypeError, ValueError: an argument that cannot be meant, named. The values of tables on a GPU are not read back
            for a check, since that would wait for the GPU.
    """
    checks.tensor("rows", rows, dims=2)
    checks.integer("rows", rows, *TOKEN_TYPES)
    checks.tensor("loss_bits", loss_bits, dims=2)
    checks.integer("loss_bits", loss_bits, torch.uint8)
    checks.same("loss_bits", loss_bits, "rows", rows, dtype=False)
    num_rows, context = rows.shape
    if loss_bits.shape != (num_rows, -(-context // 8)):
        raise ValueError(f"loss_bits has shape {tuple(loss_bits.shape)}; rows {tuple(rows.shape)} ask for one bit each")
    _check_segments(segment_starts, segment_rows, rows, num_rows, context, cu_length)
    arguments = (x.contiguous() for x in (rows, loss_bits, segment_starts, segment_rows))
    result: Batch = _unpack_op(*arguments, cu_length, impl)
    return result


def pack_spans(
    buffer: Tensor,
    patches: Tensor,
    span_source: Tensor,
    span_starts: Tensor,
    span_rows: Tensor,
    segment_starts: Tensor,
    segment_loss: Tensor,
    segment_rows: Tensor,
    *,
    context: int,
    pad_id: int,
    sentinels: Sequence[int] = (),
    cu_length: int,
    impl: str = "auto",
) -> Batch:
    """A batch gathered from a buffer of tokens, with patches between the copies.

    Args:
        buffer: (N,) uint16 or uint32. patches: (P,), of the same dtype.
        span_source: (S,) int64, place in `buffer` where a span begins, or ~place in `patches`, or `PADDING`.
        span_starts: (S,) int32, first token of each span in its row, ascending from 0; spans tile their rows.
        span_rows: (R + 1,) int64, first entry of each row in the spans' tables.
        segment_starts, segment_rows, cu_length: as in `unpack_rows`.
        segment_loss: (G,) int32, from which token of its row on a segment carries loss (C where it does not).
        context: C. pad_id: what padding consists of; it carries no loss.
        sentinels: at most 4 ids that carry no loss where they stand in patches.
        impl: see `mify.kernels.dispatch`.

    Returns:
        as `unpack_rows`.

    Raises:
        TypeError, ValueError: as in `unpack_rows`. On a GPU a span that leads beyond its buffer gives the id −1, which
            no embedding takes.
    """
    checks.tensor("buffer", buffer, dims=1)
    checks.integer("buffer", buffer, *TOKEN_TYPES)
    checks.tensor("patches", patches, dims=1)
    checks.same("patches", patches, "buffer", buffer)
    for name, x, dtype in (
        ("span_source", span_source, torch.int64),
        ("span_starts", span_starts, torch.int32),
        ("span_rows", span_rows, torch.int64),
        ("segment_loss", segment_loss, torch.int32),
    ):
        checks.tensor(name, x, dims=1)
        checks.integer(name, x, dtype)
        checks.same(name, x, "buffer", buffer, dtype=False)
    checks.tensor("segment_rows", segment_rows, dims=1)
    num_rows = segment_rows.numel() - 1
    _check_segments(segment_starts, segment_rows, buffer, num_rows, context, cu_length)
    for name, x, other, size in (
        ("span_starts", span_starts, "span_source", span_source.numel()),
        ("span_rows", span_rows, "segment_rows", num_rows + 1),
        ("segment_loss", segment_loss, "segment_starts", segment_starts.numel()),
    ):
        if x.numel() != size:
            raise ValueError(f"{name} has {x.numel()} entries; {other} asks for {size}")
    if len(sentinels) > MOST_SENTINELS:
        raise ValueError(f"sentinels has {len(sentinels)} ids; at most {MOST_SENTINELS} are taken")
    if not 0 <= pad_id <= 0xFFFFFFFF:
        raise ValueError(f"pad_id is {pad_id}; it must be a token's id")
    tensors = (buffer, patches, span_source, span_starts, span_rows, segment_starts, segment_loss, segment_rows)
    result: Batch = _pack_op(*(x.contiguous() for x in tensors), context, pad_id, list(sentinels), cu_length, impl)
    return result


def _check_segments(
    segment_starts: Tensor, segment_rows: Tensor, like: Tensor, num_rows: int, context: int, cu_length: int
) -> None:
    for name, x, dtype in (
        ("segment_starts", segment_starts, torch.int32),
        ("segment_rows", segment_rows, torch.int64),
    ):
        checks.tensor(name, x, dims=1)
        checks.integer(name, x, dtype)
        checks.same(name, x, "the tokens", like, dtype=False)
    if num_rows < 1 or context < 1:
        raise ValueError(f"there are {num_rows} rows of {context} tokens; at least one of each is expected")
    if segment_rows.numel() != num_rows + 1:
        raise ValueError(f"segment_rows has {segment_rows.numel()} entries; {num_rows} rows ask for {num_rows + 1}")
    if num_rows * context >= 1 << 31:
        raise ValueError(f"{num_rows} rows of {context} tokens are 2^31 or more, which int32 cu_seqlens do not hold")
    if cu_length < num_rows + 1:
        raise ValueError(f"cu_length is {cu_length}; {num_rows} rows need at least {num_rows + 1}")
