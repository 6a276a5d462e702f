"""Our streaming writer and lazy reader against the `safetensors` package."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mify.errors import MifyError
from mify.export.safetensors_file import Entry, SafetensorsFile, write

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.int32, torch.int8, torch.uint8,
]  # fmt: skip


def make(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 20).to(dtype)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 5), max_size=3).map(tuple), st.sampled_from(DTYPES)), min_size=1, max_size=6
    )
)
def test_the_package_reads_what_we_write_and_the_reverse(
    tmp_path: Path, described: list[tuple[tuple[int, ...], torch.dtype]]
) -> None:
    tensors = {f"t{place}": make(shape, dtype, place) for place, (shape, dtype) in enumerate(described)}
    entries = {name: Entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write(tmp_path / "ours.safetensors", entries, tensors.__getitem__)
    save_file(tensors, tmp_path / "theirs.safetensors")
    theirs = load_file(tmp_path / "ours.safetensors")
    ours = SafetensorsFile(tmp_path / "theirs.safetensors")
    assert theirs.keys() == ours.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        for other in (theirs[name], ours.tensor(name)):
            assert other.dtype == tensor.dtype
            assert other.shape == tensor.shape
            assert other.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


def test_tensors_are_aligned_to_their_items(tmp_path: Path) -> None:
    tensors = {"a": make((3,), torch.uint8), "b": make((3,), torch.int64), "c": make((3,), torch.bfloat16)}
    write(tmp_path / "m", {n: Entry(t.dtype, tuple(t.shape)) for n, t in tensors.items()}, tensors.__getitem__)
    with open(tmp_path / "m", "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    assert (8 + length) % 8 == 0
    assert [header[name]["data_offsets"] for name in "bca"] == [[0, 24], [24, 30], [30, 33]]


def test_a_tensor_that_is_not_as_announced_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced as"):
        write(tmp_path / "m", {"a": Entry(torch.float32, (2,))}, lambda _: torch.zeros(3))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "0 bytes"),
        (struct.pack("<Q", 100) + b"{}", "header says 100 bytes"),
        (struct.pack("<Q", 2) + b"{x", "no JSON"),
        (struct.pack("<Q", 2) + b"[]", "unreadable header"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "unreadable header"),
        (
            struct.pack("<Q", 58) + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}    ' + b"1234567",
            "is truncated: a ends at byte 74",
        ),
        (
            struct.pack("<Q", 58) + b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}    ' + b"12345678",
            "a spans 8 bytes, needs 12",
        ),
        (
            struct.pack("<Q", 58) + b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}    ' + b"12345678",
            "unreadable header",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(MifyError, match=named):
        SafetensorsFile(tmp_path / "m.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match=r"m\.safetensors does not exist"):
        SafetensorsFile(tmp_path / "m.safetensors")
