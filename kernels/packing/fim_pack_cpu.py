"""The gather-and-patch pass in C++ for CPUs (csrc/packing/fim_pack.cpp)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mify.kernels import cpu


def addresses(**tensors: Tensor) -> dict[str, int]:
    """Pointers by name, as the bindings take them."""
    return {name: x.data_ptr() if x.numel() else 0 for name, x in tensors.items()}


def outputs(like: Tensor, size: int, cu_length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(tokens, labels, positions, cu_seqlens), not filled."""
    tokens, labels, positions = (torch.empty(size, dtype=torch.int64, device=like.device) for _ in range(3))
    return tokens, labels, positions, torch.empty(cu_length, dtype=torch.int32, device=like.device)


def row_arguments(
    rows: Tensor, loss_bits: Tensor, segment_starts: Tensor, segment_rows: Tensor, cu_length: int
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], dict[str, int]]:
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
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], dict[str, int | list[int]]]:
    """The outputs, and what the bindings' `pack_spans` takes."""
    num_rows = segment_rows.numel() - 1
    tokens, labels, positions, cu_seqlens = outputs(buffer, num_rows * context, cu_length)
    pointers = addresses(
        buffer=buffer, patches=patches, span_source=span_source, span_starts=span_starts, span_rows=span_rows,
        segment_starts=segment_starts, segment_loss=segment_loss, segment_rows=segment_rows,
        tokens=tokens, labels=labels, positions=positions, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    sizes = {
        "num_rows": num_rows, "context": context, "num_segments": segment_starts.numel(),
        "num_spans": span_starts.numel(), "buffer_size": buffer.numel(), "patches_size": patches.numel(),
        "cu_length": cu_length, "token_bytes": buffer.element_size(), "pad_id": pad_id,
    }  # fmt: skip
    return (tokens, labels, positions, cu_seqlens), {**pointers, **sizes, "sentinels": list(sentinels)}


def unpack_rows(
    rows: Tensor, loss_bits: Tensor, segment_starts: Tensor, segment_rows: Tensor, cu_length: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `fim_pack_ref.unpack_rows`."""
    from mify._core import kernels

    batch, arguments = row_arguments(rows, loss_bits, segment_starts, segment_rows, cu_length)
    kernels.unpack_rows(threads=cpu.threads(), **arguments)
    return batch


def pack_spans(*arguments: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `fim_pack_ref.pack_spans`."""
    from mify._core import kernels

    batch, named = span_arguments(*arguments)  # type: ignore[arg-type]
    kernels.pack_spans(threads=cpu.threads(), **named)
    return batch
