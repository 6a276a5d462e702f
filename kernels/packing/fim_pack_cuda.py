"""The gather-and-patch pass in CUDA (csrc/packing/fim_pack.cu), on torch's current stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .fim_pack_cpu import row_arguments, span_arguments
from .fim_pack_ref import Batch, Spans


def unpack_rows(rows: Tensor, loss_bits: Tensor, segment_starts: Tensor, segment_rows: Tensor, cu_length: int) -> Batch:
    """As `fim_pack_ref.unpack_rows`."""
    from mify._cuda import unpack_rows as launch

    with torch.cuda.device(rows.device):
        batch, arguments = row_arguments(rows, loss_bits, segment_starts, segment_rows, cu_length)
        launch(stream=torch.cuda.current_stream().cuda_stream, **arguments)
    return batch


def pack_spans(spans: Spans, context: int, pad_id: int, sentinels: Sequence[int], cu_length: int) -> Batch:
    """As `fim_pack_ref.pack_spans`."""
    from mify._cuda import pack_spans as launch

    with torch.cuda.device(spans.buffer.device):
        batch, named = span_arguments(spans, context, pad_id, sentinels, cu_length)
        launch(stream=torch.cuda.current_stream().cuda_stream, **named)
    return batch
