"""Every shipped Triton configuration compiles for Hopper without a GPU, uses its tensor cores and spills nothing."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton")

import triton

from mify.kernels import ahead
from mify.kernels.attention import gqa_extend_triton, gqa_triton
from mify.kernels.loss import ce_triton
from mify.kernels.mlp import glu_triton
from mify.kernels.norm import norm_triton
from mify.kernels.packing import fim_pack_triton
from mify.kernels.rope import rotary_triton

SHARED_BYTES = {90: 227 * 1024, 80: 163 * 1024}
# Bytes a thread that may be spilled. Triton 3.6 needs some where 3.9 needs none (backward with dq at 128); Ampere's
# matrix instructions read from registers, so there is no tile without.
SPILLED = {90: 0 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7) else 24, 80: 88}


def cases(capability: int) -> list[ahead.Case]:
    rows = [*norm_triton.cases(), *glu_triton.cases(), *rotary_triton.cases(), *ce_triton.cases()]
    return [*gqa_triton.cases(capability), *rows]


def quick() -> list[ahead.Case]:
    """One configuration for each op and direction."""
    names = {"gqa forward 128", "gqa keys and dq 128", "gqa queries 128", "norm forward 2560 with residual",
             "norm backward 2560 with residual", "glu backward", "rope forward 20/4 heads of 128",
             "ce forward and gradient"}  # fmt: skip
    return [case for case in cases(90) if case.name in names]


def check(case: ahead.Case, capability: int) -> None:
    built = ahead.build(case, capability)
    assert built.shared <= SHARED_BYTES[capability], case.name
    if case.uses_tensor_cores:
        assert built.instructions["HGMMA" if capability == 90 else "HMMA"] > 0, case.name
        assert not (capability == 90 and built.instructions["HMMA"]), f"{case.name}: old matrix instructions on Hopper"
    assert built.stack + built.local <= SPILLED[capability], f"{case.name} spills {built.stack} bytes a thread"
    if capability == 90 and case.uses_tensor_cores:
        assert built.instructions["UTMALDG"] > 0, f"{case.name}: the tensor memory accelerator copies nothing"


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name == "gqa_extend 20/4/128 bf16" else pytest.mark.slow)
        for case in gqa_extend_triton.cases()
    ],
)
def test_chunks_over_pages_for_hopper(case: ahead.Case) -> None:
    """Pages are gathered through their table, which the tensor memory accelerator cannot: asynchronous copies do."""
    built = ahead.build(case, 90)
    assert (built.stack, built.local) == (0, 0)
    assert built.instructions["HGMMA"] > 0
    assert built.instructions["HMMA"] == 0
    assert built.instructions["LDGSTS"] > 0
    assert built.shared <= SHARED_BYTES[90] // 2, "two blocks fit on a multiprocessor"


@pytest.mark.parametrize("case", quick(), ids=lambda case: case.name)
def test_one_of_each_for_hopper(case: ahead.Case) -> None:
    check(case, 90)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(90), ids=lambda case: case.name)
def test_all_for_hopper(case: ahead.Case) -> None:
    check(case, 90)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(80), ids=lambda case: case.name)
def test_all_for_ampere(case: ahead.Case) -> None:
    check(case, 80)


@pytest.mark.slow
def test_warp_specialization_is_not_ignored() -> None:
    """Triton ignores it silently where it cannot do it (8 warps, say)."""
    (case,) = [case for case in gqa_triton.cases() if case.constants.get("SPECIALIZED")]
    assert "ttg.warp_specialize" in ahead.lowered(case, stage="ttgir")


# So many tokens that times heads and head dimension (20 x 128) they are far beyond 2³¹, and rows of any op as well.
TOKENS = 1 << 26


@pytest.mark.parametrize(
    "case",
    [
        *norm_triton.cases()[:2],
        *glu_triton.cases(),
        *rotary_triton.cases()[:1],
        *ce_triton.cases()[-1:],
        *fim_pack_triton.cases()[:2],
        *[
            case
            for case in gqa_triton.cases()
            if case.name in ("gqa edges", "gqa forward 128", "gqa keys and dq 128", "gqa queries 128")
        ],
    ],
    ids=lambda case: case.name,
)
def test_no_32_bit_index_overflows(case: ahead.Case) -> None:
    """2³¹ elements cannot be run here, so the compiled index types are looked at, with 2²⁶ tokens put in."""
    assert (found := overflows(ahead.lowered(case))) == [], found


def test_an_overflow_would_be_found() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def narrow(x_ptr, tokens, HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0) * 64 + tl.arange(0, 64)
        row = row.to(tl.int64) if WIDE else row
        at = (row * HEADS)[:, None] * DIM + tl.arange(0, DIM)[None, :]
        tl.store(x_ptr + at, 0.0, mask=(row < tokens)[:, None])

    for wide in (False, True):
        constants = {"HEADS": 20, "DIM": 128, "WIDE": wide}
        case = ahead.Case("narrow", narrow, {"x_ptr": "*bf16", "tokens": "i32"}, constants)
        assert bool(overflows(ahead.lowered(case))) is not wide


def overflows(code: str) -> list[str]:
    """The 32-bit sums and products in Triton's intermediate code that pass 2³¹ with `TOKENS` tokens.

    A bound is followed through the code: integer arguments and numbers that are loaded are at most TOKENS, and so is a
    program's number times its block (a power of two up to 4,096; the sizes of the cases are none).
    """
    most: dict[str, int] = {}
    programs: set[str] = set()
    wrong = []
    for line in code.splitlines():
        line = re.sub(r" loc\(.*", "", line)
        if loop := re.search(r"scf\.for (%\S+) = %\S+ to (%\S+) step", line):
            most[loop[1]] = most.get(loop[2], TOKENS)
            if loop[2] in programs:
                programs.add(loop[1])
        if (found := re.match(r"\s*(%\S+) = (\S+) (.*)", line)) is None:
            continue
        name, op, rest = found.groups()
        values, _, kind = rest.rpartition(" : ")
        operands = re.findall(r"%[\w#]+", values)
        bounds = [most.get(x, TOKENS) for x in operands]
        if op == "arith.constant":
            number = re.match(r"(?:dense<)?(-?\d+)(?:>)?$", values)
            most[name] = abs(int(number[1])) if number else TOKENS
        elif op == "tt.get_program_id":
            programs.add(name)
            most[name] = TOKENS
        elif op == "tt.make_range":
            end = re.search(r"end = (\d+)", rest)
            assert end
            most[name] = int(end[1])
        elif op in ("arith.addi", "arith.subi"):
            most[name] = sum(bounds)
        elif op == "arith.muli":
            block = [b for x, b in zip(operands, bounds, strict=True) if x not in programs]
            is_block = len(block) == 1 and block[0] <= 4096 and block[0] & (block[0] - 1) == 0
            most[name] = TOKENS if is_block else bounds[0] * bounds[1]
        elif op == "arith.divsi":
            divisor = bounds[1] if operands[1].startswith("%c") else 1
            most[name] = bounds[0] // max(divisor, 1)
        elif op in ("arith.remsi", "arith.minsi"):
            most[name] = min(bounds)
        elif op in ("arith.maxsi", "arith.select"):
            most[name] = max(bounds[-2:])
        elif op in ("tt.splat", "tt.broadcast", "tt.expand_dims", "arith.extsi", "arith.trunci", "tt.reshape"):
            most[name] = bounds[0]
            if operands[0] in programs:
                programs.add(name)
        else:
            most[name] = TOKENS
        if op in ("arith.addi", "arith.subi", "arith.muli") and re.search(r"\bi32|xi32", kind) and most[name] >= 2**31:
            wrong.append(line.strip())
    assert most
    return wrong
