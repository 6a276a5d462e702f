"""The CUDA gather-and-patch kernel without a GPU: emulated, read as machine code, given bad arguments."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulated
import pytest
import torch
from fim_pack_oracle import Batch, assert_same, random_inputs

from mify.kernels.packing.fim_pack_cpu import row_arguments, span_arguments
from mify.kernels.packing.fim_pack_ref import Spans

POINTERS = (
    "rows loss_bits buffer patches span_source span_starts span_rows segment_loss segment_starts segment_rows "
    "tokens labels positions cu_seqlens"
)
SIZES = "num_rows context num_segments num_spans buffer_size patches_size cu_length pad_id"
TILE = 2048


class Params(ctypes.Structure):
    """FimPackParams of csrc/packing/fim_pack.hpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS.split()),
        *((name, ctypes.c_int64) for name in SIZES.split()),
        ("sentinels", ctypes.c_int64 * 4),
    ]


@pytest.fixture(scope="module")
def emulator(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return emulated.library("fim_pack", Params, checkout, tmp_path_factory.mktemp("emulation"))


def emulate(emulator: ctypes.CDLL, batch: Batch, arguments: dict[str, Any], spans: bool, seed: int) -> Batch:
    for x in batch:
        x.fill_(-77)  # poisoned: what is not written stays
    arguments = dict(arguments)
    token_bytes = arguments.pop("token_bytes")
    sentinels = [*arguments.pop("sentinels", []), -1, -1, -1, -1][:4]
    params = Params(**arguments, sentinels=(ctypes.c_int64 * 4)(*sentinels))
    emulator.emulate_fim_pack(ctypes.byref(params), token_bytes, spans, seed)
    return batch


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32])
@pytest.mark.parametrize(("context", "rows"), [(32, 1), (33, 3), (41, 2), (256, 2), (TILE - 1, 1), (TILE + 1, 2)])
def test_the_emulated_kernel_equals_a_plain_loop(
    emulator: ctypes.CDLL, context: int, rows: int, dtype: torch.dtype
) -> None:
    for seed in range(3):
        given = random_inputs(seed, context, rows, dtype, behind=seed % 2, one_token=seed == 2)
        batch, arguments = row_arguments(*given.rows, given.cu_length)
        assert_same(emulate(emulator, batch, arguments, False, seed), given.batch)
        options = [given.options[name] for name in ("context", "pad_id", "sentinels", "cu_length")]
        batch, arguments = span_arguments(Spans(*given.spans), *options)  # type: ignore[arg-type]
        assert_same(emulate(emulator, batch, arguments, True, seed), given.batch)


def test_damaged_tables_lead_nowhere(emulator: ctypes.CDLL) -> None:
    """On a GPU nobody reads the tables back to check them: places beyond a buffer give the id -1, rows beyond a table
    are empty, and nothing is read or written elsewhere (the emulation would crash on these addresses)."""
    given = random_inputs(0, 64, 2)
    options = [given.options[name] for name in ("context", "pad_id", "sentinels", "cu_length")]
    for which, value in ((2, 1 << 40), (2, -(1 << 40)), (4, 1 << 40), (7, 1 << 40), (7, -(1 << 40)), (4, -5)):
        spans = list(given.spans)
        spans[which] = torch.full_like(spans[which], value)
        batch, arguments = span_arguments(Spans(*spans), *options)  # type: ignore[arg-type]
        tokens, labels, positions, _ = emulate(emulator, batch, arguments, True, 0)
        assert set(tokens.tolist()) <= {-1, 1} | set(given.batch[0].tolist())
        if which == 2:
            assert (tokens == -1).all()
            assert (labels == -100).all()
        assert ((positions >= 0) & (positions < 64)).all()


@pytest.fixture(scope="module")
def machine_code() -> dict[tuple[int, str, str], tuple[str, list[str]]]:
    """(architecture, token type, spans) of each variant in mify._cuda -> its resource usage, its instructions."""
    from mify.bench import static

    tool, spec = static.cuobjdump(), importlib.util.find_spec("mify._cuda")
    if tool is None or spec is None or spec.origin is None:
        pytest.skip("mify._cuda is not built, or there is no cuobjdump to read it with")

    def dump(*options: str) -> str:
        return subprocess.run([tool, *options, str(spec.origin)], capture_output=True, text=True, check=True).stdout

    def functions(listing: str) -> Iterator[tuple[int, str, str]]:
        architecture = 0
        for part in re.split(r"(?=arch = sm_|Function )", listing):
            if found := re.match(r"arch = sm_(\d+)", part):
                architecture = int(found[1])
            elif found := re.match(r"Function\s*:?\s*(\S*fim_pack_kernel\w*)", part):
                yield architecture, found[1], part

    usage = {(arch, name): part for arch, name, part in functions(dump("--dump-resource-usage"))}
    names = ",".join(sorted({name for _, name in usage}))
    code = {(arch, name): part for arch, name, part in functions(dump("-sass", "-fun", names))}
    variants = {}
    for (arch, name), part in usage.items():
        token, spans = re.search(r"fim_pack_kernelI([tj])Lb(\d)E", name).groups()  # type: ignore[union-attr]
        instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9.]+)", code[arch, name])
        variants[arch, token, spans] = part, instructions
    return variants


def test_every_variant_is_built_and_none_spills(
    machine_code: dict[tuple[int, str, str], tuple[str, list[str]]],
) -> None:
    assert set(machine_code) == {(a, t, s) for a in (80, 90) for t in "tj" for s in "01"}
    for variant, (usage, instructions) in machine_code.items():
        registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups())  # type: ignore[union-attr]
        assert stack == local == 0, variant
        assert not {"LDL", "STL"} & {name.split(".")[0] for name in instructions}, variant
        # On Hopper all eight blocks of 256 threads that a multiprocessor can hold; six on an A100.
        assert registers <= (32 if variant[0] == 90 else 40), (variant, registers)
        # tokens, labels and positions are stored sixteen bytes at a time.
        assert sum(name == "STG.E.128" for name in instructions) >= 3, variant


@pytest.mark.parametrize("which", [1, *(pytest.param(i, marks=pytest.mark.slow) for i in (0, 2, 3))])
@pytest.mark.parametrize("capability", [90, pytest.param(80, marks=pytest.mark.slow)])
def test_the_triton_twin_compiles(which: int, capability: int) -> None:
    pytest.importorskip("triton")
    from mify.kernels.ahead import build
    from mify.kernels.packing.fim_pack_triton import cases

    built = build(cases()[which], capability)
    assert built.stack == built.local == 0
    assert built.registers <= 128


def arguments_of(spans: bool) -> dict[str, Any]:
    given = random_inputs(0, 64, 2)
    if not spans:
        return row_arguments(*given.rows, given.cu_length)[1]
    options = [given.options[name] for name in ("context", "pad_id", "sentinels", "cu_length")]
    return span_arguments(Spans(*given.spans), *options)[1]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spans", "changes", "text"),
    [
        (False, {"rows": 0}, "rows is a null pointer"),
        (False, {"rows": 257}, "rows is not aligned to 2 bytes"),
        (True, {"tokens": 264}, "tokens is not aligned to 16 bytes"),
        (False, {"token_bytes": 3}, "token_bytes must be 2 or 4"),
        (False, {"num_rows": -1}, "num_rows is -1"),
        (False, {"context": 0}, "context is 0"),
        (False, {"context": 1 << 30}, "below 2\\^31"),
        (False, {"cu_length": 0}, "cu_length is 0"),
        (True, {"buffer_size": -1}, "buffer_size is -1"),
        (True, {"span_rows": 0}, "span_rows is a null"),
        (True, {"pad_id": 1 << 40}, "pad_id is"),
        (True, {"sentinels": [1, 2, 3, 4, 5]}, "at most 4"),
    ],
)
def test_the_binding_refuses_before_any_launch(spans: bool, changes: dict[str, Any], text: str) -> None:
    cuda = pytest.importorskip("mify._cuda")
    call = cuda.pack_spans if spans else cuda.unpack_rows
    with pytest.raises(ValueError, match=text):
        call(stream=0, **(arguments_of(spans) | changes))
    with pytest.raises(ValueError, match="segment_rows is missing"):
        call(stream=0, **{k: v for k, v in arguments_of(spans).items() if k != "segment_rows"})


def test_the_extension_says_what_is_missing() -> None:
    cuda = pytest.importorskip("mify._cuda")
    cuda.unpack_rows(stream=0, **(arguments_of(False) | {"num_rows": 0}))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="driver|device"):
            cuda.unpack_rows(stream=0, **arguments_of(False))
