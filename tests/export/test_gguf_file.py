"""Our reader of GGUF metadata against `gguf`'s, and against bytes that are not what they should be."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mify.errors import MifyError
from mify.export.gguf import export_gguf, import_gguf
from mify.export.gguf_file import GgufFile
from mify.model import Model

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Model]) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    export_gguf(make_model(num_layers=1), path, "q8_0")
    return path


def test_every_field_and_tensor_is_as_ggufs_own_reader_has_it(file: Path) -> None:
    ours, theirs = GgufFile(file), gguf.GGUFReader(file)
    expected = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.fields == expected
    assert [tensor.name for tensor in theirs.tensors] == list(ours.tensors)
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.kind, found.start, found.num_bytes) == (
            tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes,
        )  # fmt: skip
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert ours.data(tensor.name).tobytes() == tensor.data.tobytes()


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    values = {"u8": 200, "i8": -5, "u16": 60_000, "i16": -300, "u32": 4_000_000_000, "i32": -70_000,
              "u64": 1 << 60, "i64": -(1 << 60), "f32": 0.5, "f64": 0.1}  # fmt: skip
    for name, value in values.items():
        kind = name.replace("u", "uint").replace("i", "int", 1) if name[0] == "i" else name.replace("u", "uint")
        getattr(writer, f"add_{kind.replace('f', 'float')}")(name, value)
    writer.add_bool("yes", True)
    writer.add_string("text", "naïve 🙂")
    writer.add_array("strings", ["a", "é"])
    writer.add_array("numbers", [1, -2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    found = GgufFile(tmp_path / "m.gguf").fields
    assert {name: found[name] for name in values} == values
    assert (found["yes"], found["text"], found["strings"], found["numbers"]) == (
        True, "naïve 🙂", ["a", "é"], [1, -2, 3],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no GGUF file"),
        (b"PK\x03\x04", "no GGUF file"),
        (b"GGUF", "truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "passes the file's end"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "unknown type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 1 << 61), "damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 61), "an array of"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000,
         "damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<I", 99), "t has 99 dimensions"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 8, 999, 0), "ggml type 999"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 8, 0, 0), "t ends at byte"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(MifyError, match=named):
        GgufFile(tmp_path / "m.gguf")


def test_a_flipped_byte_is_an_error_that_is_explained_or_harmless(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    header = GgufFile(file).tensors["token_embd.weight"].start
    chance = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        damaged[chance.randrange(header)] ^= 1 << chance.randrange(8)
        (tmp_path / "m.gguf").write_bytes(damaged)
        try:
            import_gguf(tmp_path / "m.gguf")
        except MifyError:
            refused += 1
    assert refused > 8
