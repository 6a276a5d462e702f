"""The gather-and-patch pass in C++ for CPUs (csrc/packing/fim_pack.cpp)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mify.kernels import cpu

from .fim_pack_ref import Batch, Spans, outputs


def addresses(**tensors: Tensor) -> dict[str, int]:
    """Pointers by name, as the bindings take them."""
    return {name: x.data_ptr() if x.numel() else 0 for name, x in tensors.items()}


def row_arguments(
    rows: Tensor, loss_bits: Tensor, segment_starts: Tensor, segment_rows: Tensor, cu_length: int
) -> tuple[Batch, dict[str, int]]:
    """The outputs, and what the bindings' `unpack_rows` takes."""
    tokens, labels, positions, cu_seqlens = outputs(rows, rows.numel(), cu_length)
    pointers = addresses(
        rows=rows, loss_bits=loss_bits, segment_starts=segment_starts, segment_rows=segment_rows,
        tokens=tokens, labels=labels, positions=positions, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    sizes = {
        "num_rows": rows.shape[0], "context": rows.shape[1], "num_segments": segment_starts.numel(),
        "cu_length": cu_length, "token_bytes": rows.element_size(),
    }  # fmt: skip
    return (tokens, labels, positions, cu_seqlens), {**pointers, **sizes}


def span_arguments(
    spans: Spans, context: int, pad_id: int, sentinels: Sequence[int], cu_length: int
) -> tuple[Batch, dict[str, int | list[int]]]:
    """The outputs, and what the bindings' `pack_spans` takes."""
    tokens, labels, positions, cu_seqlens = outputs(spans.buffer, spans.num_rows * context, cu_length)
    pointers = addresses(
        **spans._asdict(), tokens=tokens, labels=labels, positions=positions, cu_seqlens=cu_seqlens
    )  # fmt: skip
    sizes = {
        "num_rows": spans.num_rows, "context": context, "num_segments": spans.segment_starts.numel(),
        "num_spans": spans.span_starts.numel(), "buffer_size": spans.buffer.numel(),
        "patches_size": spans.patches.numel(), "cu_length": cu_length, "token_bytes": spans.buffer.element_size(),
        "pad_id": pad_id,
    }  # fmt: skip
    return (tokens, labels, positions, cu_seqlens), {**pointers, **sizes, "sentinels": list(sentinels)}


def unpack_rows(rows: Tensor, loss_bits: Tensor, segment_starts: Tensor, segment_rows: Tensor, cu_length: int) -> Batch:
    """As `fim_pack_ref.unpack_rows`."""
    from mify._core import kernels

    batch, arguments = row_arguments(rows, loss_bits, segment_starts, segment_rows, cu_length)
    kernels.unpack_rows(threads=cpu.threads(), **arguments)
    return batch


def pack_spans(spans: Spans, context: int, pad_id: int, sentinels: Sequence[int], cu_length: int) -> Batch:
    """As `fim_pack_ref.pack_spans`."""
    from mify._core import kernels

    batch, named = span_arguments(spans, context, pad_id, sentinels, cu_length)
    kernels.pack_spans(threads=cpu.threads(), **named)
    return batch
