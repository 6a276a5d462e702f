"""The gather-and-patch pass in CUDA (csrc/packing/fim_pack.cu), on torch's current stream."""

from __future__ import annotations

import torch
from torch import Tensor

from .fim_pack_cpu import row_arguments, span_arguments


def unpack_rows(
    rows: Tensor, loss_bits: Tensor, segment_starts: Tensor, segment_rows: Tensor, cu_length: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `fim_pack_ref.unpack_rows`."""
    from mify._cuda import unpack_rows as launch

    with torch.cuda.device(rows.device):
        batch, arguments = row_arguments(rows, loss_bits, segment_starts, segment_rows, cu_length)
        launch(stream=torch.cuda.current_stream().cuda_stream, **arguments)
    return batch


def pack_spans(buffer: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `fim_pack_ref.pack_spans`."""
    from mify._cuda import pack_spans as launch

    with torch.cuda.device(buffer.device):
        batch, named = span_arguments(buffer, *rest)  # type: ignore[arg-type]
        launch(stream=torch.cuda.current_stream().cuda_stream, **named)
    return batch
