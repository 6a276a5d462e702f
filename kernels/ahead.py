"""Triton kernels compiled without a GPU, and what came out: registers, spills, shared memory, instructions.

Every `X_triton.py` lists its shipped configurations in `cases()`. The tests assert on what `build` reports, and the
benchmark prints it as its static table.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAUNCH: dict[str, Any] = {"enable_fp_fusion": True}
"""Options of every launch. Multiply-add is fused knowingly: Triton's default is to change in 3.10."""


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration.

    Args:
        name: for people.
        kernel: the `triton.jit` function.
        arguments: name → Triton type; a pointer ("*bf16") is 16-byte aligned, an integer is where it ends in "*16"
            ("i32*16" is a multiple of 16).
        constants: the `tl.constexpr` arguments.
        num_warps, num_stages: as at launch.
        uses_tensor_cores: whether the code must contain matrix instructions.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    uses_tensor_cores: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """What the compiler made.

    Args:
        registers: a thread. stack, local: bytes a thread; more than 0 is a spill. shared: bytes a block, dynamic too.
        instructions: how often each tensor-core or copy instruction stands in the code (HGMMA, HMMA, LDGSTS, UTMALDG).
    """

    registers: int
    stack: int
    local: int
    shared: int
    instructions: Mapping[str, int]


def build(case: Case, capability: int = 90) -> Built:
    """Compiles `case` for a compute capability (80, 90) down to machine code and reads what it needs.

    Raises:
        RuntimeError: Triton runs in its interpreter, where nothing is compiled.
    """
    compiled = _compile(case, capability)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "--dump-resource-usage", str(file))
        code = _run("nvdisasm", str(file))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {usage!r}")
    instructions = {
        name: len(re.findall(rf"\b{name}\b", code))
        for name in ("HGMMA", "QGMMA", "HMMA", "LDGSTS", "UTMALDG", "ATOMG", "RED", "REDG")
    }
    registers, stack, local = (int(x) for x in found.groups())
    return Built(registers, stack, local, int(compiled.metadata.shared), instructions)


def lowered(case: Case, capability: int = 90, stage: str = "ttir") -> str:
    """Triton's intermediate code of `case`: "ttir", whose index types can be looked at, or "ttgir", the GPU's."""
    return str(_compile(case, capability).asm[stage])


def _compile(case: Case, capability: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not hasattr(case.kernel, "cache_key"):
        raise RuntimeError("TRITON_INTERPRET is set: nothing can be compiled in this process")
    names = list(case.kernel.arg_names)
    signature, aligned = {}, {}
    for name in names:
        if name in case.constants:
            signature[name] = "constexpr"
            continue
        kind = case.arguments[name]
        signature[name] = kind.removesuffix("*16")
        if kind.startswith("*") or kind.endswith("*16"):
            aligned[(names.index(name),)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, dict(case.constants), aligned)
    options = {**LAUNCH, "num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _run(tool: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends/nvidia/bin" / tool
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, check=True).stdout
