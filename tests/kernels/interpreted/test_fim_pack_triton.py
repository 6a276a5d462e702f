"""The gather-and-patch pass in Triton against the plain loop, bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from fim_pack_oracle import assert_same, random_inputs

from mify.kernels.packing import fim_pack_triton
from mify.kernels.packing.fim_pack import pack_spans, unpack_rows


@pytest.mark.parametrize(
    ("context", "rows", "dtype"), [(33, 2, torch.uint16), (130, 1, torch.uint16), (70, 1, torch.uint32)]
)
def test_it_equals_a_plain_loop(
    context: int, rows: int, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fim_pack_triton, "BLOCK", 64)
    for seed in range(2):
        given = random_inputs(seed, context, rows, dtype, behind=seed % 2, one_token=seed == 1 and context < 100)
        moved = [x.to(device) for x in given.rows]
        assert_same(unpack_rows(*moved, cu_length=given.cu_length, impl="triton"), given.batch)
        moved = [x.to(device) for x in given.spans]
        assert_same(pack_spans(*moved, **given.options, impl="triton"), given.batch)


def test_the_shipped_block(device: str) -> None:
    given = random_inputs(7, 1100, 1)
    moved = [x.to(device) for x in given.spans]
    assert_same(pack_spans(*moved, **given.options, impl="triton"), given.batch)


def test_a_span_beyond_the_buffer_gives_an_id_that_no_embedding_takes(device: str) -> None:
    given = random_inputs(0, 64, 2)
    moved = [x.to(device) for x in given.spans]
    moved[2] = torch.where(moved[2] >= 0, 1 << 40, moved[2])
    tokens, labels, _, _ = pack_spans(*moved, **given.options, impl="triton")
    assert (tokens == -1).any()
    assert not (labels == -1).any()
