"""Every shipped Triton configuration compiles for Hopper without a GPU, uses its tensor cores and spills nothing."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton")

from mify.kernels import ahead
from mify.kernels.attention import gqa_triton
from mify.kernels.loss import ce_triton
from mify.kernels.mlp import glu_triton
from mify.kernels.norm import norm_triton
from mify.kernels.rope import rotary_triton

SHARED_BYTES = {90: 227 * 1024, 80: 163 * 1024}


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
    if capability == 90:
        assert (built.stack, built.local) == (0, 0), f"{case.name} spills {built.stack} bytes a thread"
        if case.uses_tensor_cores:
            assert built.instructions["UTMALDG"] > 0, f"{case.name}: the tensor memory accelerator copies nothing"


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


@pytest.mark.parametrize(
    "case",
    [
        *norm_triton.cases()[:2],
        *glu_triton.cases(),
        *rotary_triton.cases()[:1],
        *ce_triton.cases()[-1:],
        *[case for case in gqa_triton.cases() if case.name in ("gqa forward 128", "gqa keys 128", "gqa queries 128")],
    ],
    ids=lambda case: case.name,
)
def test_no_address_is_multiplied_out_in_32_bits(case: ahead.Case) -> None:
    """T·H·D beyond 2³¹ cannot be run here, so the compiled index types are looked at: behind no address stands a 32-bit
    product of two values that are both known only at run time."""
    defined: dict[str, tuple[str, str]] = {}
    addresses = []
    for line in ahead.lowered(case).splitlines():
        if (found := re.match(r"\s*(%\S+) = (\S+) (.*)", line)) is None:
            continue
        name, op, rest = found.groups()
        defined[name] = (op, rest)
        if op == "tt.addptr":
            addresses.append(re.findall(r"%[\w#]+", rest.split(":")[0])[1])

    def narrow_product(name: str) -> str | None:
        op, rest = defined.get(name, ("", ""))
        operands = re.findall(r"%[\w#]+", rest.split(":")[0])
        if op == "arith.muli" and re.search(r"i32>?( loc.*)?$", rest) and "i64" not in rest:
            constant = any(defined.get(x, ("", ""))[0] == "arith.constant" for x in operands)
            block = any(_is_block(x, defined) for x in operands)
            return None if constant or block else f"{name} = {op} {rest}"
        if op in ("arith.addi", "arith.subi", "tt.splat", "tt.broadcast", "tt.expand_dims", "arith.extsi"):
            return next((wrong for x in operands if (wrong := narrow_product(x))), None)
        return None

    assert addresses
    for address in addresses:
        assert narrow_product(address) is None, narrow_product(address)


def _is_block(name: str, defined: dict[str, tuple[str, str]]) -> bool:
    """Whether a value is an index inside a block, which is small."""
    op, rest = defined.get(name, ("", ""))
    if op in ("tt.expand_dims", "tt.broadcast", "tt.splat"):
        return _is_block(re.findall(r"%[\w#]+", rest)[0], defined)
    return op == "tt.make_range"
