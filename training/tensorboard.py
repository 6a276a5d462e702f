"""TensorBoard event files without the tensorboard package: scalars, in the format its reader takes.

A file is a sequence of TFRecords: length (u64), masked CRC-32C of it (u32), the bytes of an `Event` message, masked
CRC-32C of those (https://www.tensorflow.org/tutorials/load_data/tfrecord). Of `Event` these fields are written:
wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5 {value = 1 {tag = 1, simple_value =
2}}, session_log = 7 {status = 1}. A session log with status START (1) tells the reader to drop the later steps of older
files, which is what a resumed run wants.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


class EventWriter:
    """Writes the numbers of metrics records as scalars, one new file for each start of a run."""

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        index = len(list(folder.glob("events.out.tfevents.*")))
        self._file: BinaryIO = (folder / f"events.out.tfevents.{int(time.time()):010}.{index:04}").open("wb")
        self._event(_field(3, b"brain.Event:2"))
        self._event(_varint_field(2, step) + _field(7, _varint_field(1, 1)))
        self._file.flush()
        self._flushed = time.monotonic()

    def write(self, record: dict[str, Any]) -> None:
        """Every finite number in `record` becomes a scalar named by its path, at the record's step."""
        values = b"".join(
            _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in scalars(record)
        )
        if values:
            self._event(_varint_field(2, record["step"]) + _field(5, values))
        if time.monotonic() - self._flushed > 5:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def _event(self, fields: bytes) -> None:
        data = b"\x09" + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(data))
        self._file.write(
            length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
        )


def scalars(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(`held_out_bits_per_byte/code`, 1.2) and so on; `step` itself, texts and None are left out."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and prefix + key != "step":
            yield prefix + key, float(value)


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and offset as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload
