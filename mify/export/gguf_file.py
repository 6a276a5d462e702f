"""A GGUF file's metadata and tensors, read on demand.

`gguf`'s own reader makes several numpy views of every string: 3.7 s for a vocabulary of 49,152,
where this takes 0.1.
Layout (little endian): "GGUF", version, number of tensors and of keys; the keys; the tensors' names, shapes, types and
offsets; padding; the data. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mify.errors import MifyError
from mify.export.gguf_types import encoded_bytes

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
# What reading bytes that are not what they should be can raise.
_DAMAGE = (
    struct.error, ValueError, KeyError, TypeError, OverflowError, ZeroDivisionError, MemoryError, RecursionError
)  # fmt: skip
_REMEDY = "download or export it again"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's ggml type by name, its shape (rows first, as in torch) and where its bytes are."""

    kind: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class GgufFile:
    """`fields`: key → value (arrays are lists); `tensors`: name → where it is. Data is read by `data(name)`.

    Raises `MifyError` where the file is truncated, damaged, of an unknown version or no GGUF file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                if file.read(4) != b"GGUF":
                    raise MifyError(f"{self.path} is no GGUF file (or empty)", _REMEDY)
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    self._parse(mapped)
        except FileNotFoundError:
            raise MifyError(f"{self.path} does not exist", "give the path of a GGUF file") from None
        except _DAMAGE as error:
            raise MifyError(f"{self.path} is truncated or damaged ({error})", _REMEDY) from None

    def data(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(bytes,) uint8 of one tensor, in memory of its own."""
        stored = self.tensors[name]
        raw = np.empty(stored.num_bytes, dtype=np.uint8)
        with open(self.path, "rb") as file:
            file.seek(stored.start)
            if file.readinto(raw.data) != stored.num_bytes:
                raise MifyError(f"{self.path} ended while {name} was read", _REMEDY)
        return raw

    def _parse(self, mapped: mmap.mmap) -> None:
        reader = _Reader(mapped)
        version = reader.scalar("I", at=4)
        if version not in _VERSIONS:
            raise MifyError(
                f"{self.path} is of GGUF version {version} (or big-endian); versions {_VERSIONS} are known",
                "convert the model again with a current converter",
            )
        num_tensors, num_fields = reader.scalar("Q"), reader.scalar("Q")
        self.fields: dict[str, Any] = {}
        for _ in range(num_fields):
            key = reader.string()
            self.fields[key] = reader.value(reader.scalar("I"))
        entries: list[tuple[str, str, tuple[int, ...], int]] = []
        for _ in range(num_tensors):
            name = reader.string()
            dimensions = reader.scalar("I")
            if dimensions > _MAX_DIMENSIONS:
                raise ValueError(f"{name} has {dimensions} dimensions")
            shape = tuple(reversed([reader.scalar("Q") for _ in range(dimensions)]))
            kind, offset = _kind(reader.scalar("I"), name), reader.scalar("Q")
            entries.append((name, kind, shape, offset))
        alignment = int(self.fields.get("general.alignment", 32))
        data = reader.position + -reader.position % alignment
        self.tensors: dict[str, StoredTensor] = {}
        for name, kind, shape, offset in entries:
            stored = StoredTensor(kind, shape, data + offset, encoded_bytes(shape, kind))
            if stored.start + stored.num_bytes > len(mapped):
                raise MifyError(
                    f"{self.path} is truncated: {name} ends at byte {stored.start + stored.num_bytes}, "
                    f"the file at {len(mapped)}",
                    _REMEDY,
                )
            self.tensors[name] = stored


class _Reader:
    """Values one after the other from a mapped file."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped
        self.position = 0
        self._length: Callable[..., tuple[int]] = struct.Struct("<Q").unpack_from

    def scalar(self, code: str, at: int | None = None) -> Any:
        if at is not None:
            self.position = at
        (value,) = struct.unpack_from(f"<{code}", self._mapped, self.position)
        self.position += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        (length,) = self._length(self._mapped, self.position)
        start = self.position + 8
        raw = self._mapped[start : start + length]
        if len(raw) != length:
            raise ValueError(f"a string of {length} bytes at byte {start} passes the file's end")
        self.position = start + length
        return raw.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"a value of unknown type {kind} at byte {self.position}")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            layout = f"<{count}{_SCALARS[inner]}"
            values = list(struct.unpack_from(layout, self._mapped, self.position))
            self.position += struct.calcsize(layout)
            return values
        if count > len(self._mapped):
            raise ValueError(f"an array of {count} values at byte {self.position}")
        return [self.value(inner) for _ in range(count)]


def _kind(number: int, name: str) -> str:
    import gguf

    try:
        return str(gguf.GGMLQuantizationType(number).name)
    except ValueError:
        raise ValueError(f"{name} is of unknown ggml type {number}") from None
