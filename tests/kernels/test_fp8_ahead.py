"""The kernels that write FP8, compiled for Hopper: no spills, the hardware's conversion, wide addresses."""

from __future__ import annotations

import dataclasses
import re

import pytest

pytest.importorskip("triton")

from mify.kernels import ahead
from mify.kernels.mlp import glu_fp8_triton
from mify.kernels.norm import norm_fp8_triton, norm_triton
from mify.kernels.quantize import quantize_triton
from mify.kernels.rope import rotary_triton

CASES = [*quantize_triton.cases(), *norm_fp8_triton.cases(), *glu_fp8_triton.cases()]
QUICK = {
    "quantize blocks, both layouts", "norm_fp8 with residual blocks, both layouts", "norm_fp8 blocks, one layout",
    "glu_fp8 delayed, both layouts",
}  # fmt: skip


def check(case: ahead.Case) -> None:
    built = ahead.build(case)
    assert (built.stack, built.local) == (0, 0), f"{case.name} spills {built.stack} bytes a thread"
    assert built.shared <= 64 * 1024
    ptx = ahead._compile(case, 90).asm["ptx"]
    assert "cvt.rn.satfinite.e4m3x2.f32" in ptx, "the hardware's saturating conversion is not used"
    # Rounded as IEEE asks, or the scales would differ from the reference's.
    assert "div.rn.f32" in ptx
    # Both layouts are written 16 bytes at a time, the transposed one too.
    assert "st.global.v4.b32" in ptx
    assert not re.search(r"st\.global\.(v\d\.)?(b|u)8", ptx)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in QUICK], ids=lambda case: case.name)
def test_some_for_hopper(case: ahead.Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_for_hopper(case: ahead.Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in QUICK], ids=lambda case: case.name)
def test_addresses_are_64_bits_wide(case: ahead.Case) -> None:
    """A matrix of more than 2³¹ elements cannot be made here: no two run-time sizes are multiplied in 32 bits."""
    kinds = dict(
        re.findall(r"(%[\w#]+) = tt\.(make_range|get_program_id|splat|expand_dims|broadcast)", ahead.lowered(case))
    )
    for line in ahead.lowered(case).splitlines():
        if "arith.muli" not in line or not re.search(r": (tensor<[\dx]+x)?i32", line):
            continue
        operands = re.findall(r"%[\w#]+", line.split("=", 1)[1].split(":")[0])
        assert any(name.startswith("%c") or kinds.get(name) == "get_program_id" for name in operands), line


@pytest.mark.parametrize(
    ("case", "argument"),
    [
        *[(rotary_triton.cases()[0], name) for name in ("tokens", "q_blocks", "q_token")],
        *[(norm_triton.cases()[1], name) for name in ("rows", "size")],
        *[(CASES[0], name) for name in ("rows", "size", "x_row")],
    ],
)
def test_a_size_of_one_compiles(case: ahead.Case, argument: str) -> None:
    """Triton makes a constant of an argument that is 1, which has fewer methods than a number."""
    arguments = {name: kind for name, kind in case.arguments.items() if name != argument}
    constants = {**case.constants, argument: 1}
    assert ahead.lowered(dataclasses.replace(case, arguments=arguments, constants=constants))
