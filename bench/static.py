"""What the compiler made of the CUDA kernels, read on a machine without a GPU: registers, spills, instructions.

They are read out of the built `mify._cuda`. Triton's kernels are compiled and read by `mify.kernels.ahead`.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mify.errors import MifyError

# Shared memory that one block may use.
SHARED_LIMIT = {90: 227 << 10, 80: 163 << 10}
_TENSOR_CORE = re.compile(r"\b(HGMMA|QGMMA|HMMA|QMMA|IMMA|IGMMA)\b")


@dataclass(frozen=True, slots=True)
class KernelReport:
    """One compiled kernel.

    Args:
        architecture: 80 or 90. registers: a thread. spilled_bytes: stack and local memory a thread.
        shared_bytes: what is declared in the code; what a launch asks for besides is not in it.
        tensor_core: instruction → how many stand in the code (HMMA mma.sync, HGMMA wgmma, QGMMA wgmma in FP8).
        async_copies: LDGSTS (cp.async) and UTMALDG/UBLKCP (the bulk copy engine) instructions.
        local_accesses: LDL and STL instructions: what spilling costs.
    """

    name: str
    architecture: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    tensor_core: Mapping[str, int]
    async_copies: int
    local_accesses: int

    @property
    def readable(self) -> str:
        """The name without its mangling, template figures behind it: "gqa_decode_kernel 128 0 1"."""
        match = re.search(r".*\d([a-z][a-z0-9_]*_kernel)", self.name)
        figures = re.findall(r"(?:Li|E)(\d+)E", self.name)
        return " ".join([match[1] if match else self.name, *figures])


def cuobjdump() -> str | None:
    """The program that reads compiled kernels: from PATH, a CUDA toolkit, or Triton's own copy."""
    found = shutil.which("cuobjdump")
    if found:
        return found
    candidates = [Path("/usr/local/cuda/bin/cuobjdump")]
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin:
        candidates.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return next((str(path) for path in candidates if path.is_file()), None)


def read_binary(path: Path) -> list[KernelReport]:
    """The kernels in a cubin (whose architecture reads 0: the file does not say), or in a library that holds some.

    Raises:
        MifyError: there is no cuobjdump, or the file holds no kernels.
    """
    tool = cuobjdump()
    if tool is None:
        raise MifyError("cuobjdump is not here, which reads compiled kernels", "install the CUDA toolkit or triton")
    usage = _usage(_run(tool, "--dump-resource-usage", str(path)))
    code = _instructions(_run(tool, "-sass", str(path)))
    if not usage:
        raise MifyError(f"{path} holds no CUDA kernels", "pass mify._cuda's library or a cubin")
    reports = []
    for (arch, name), (registers, stack, local, shared) in usage.items():
        lines = code.get((arch, name), [])
        counts: dict[str, int] = {}
        for line in lines:
            match = _TENSOR_CORE.search(line)
            if match:
                counts[match[1]] = counts.get(match[1], 0) + 1
        reports.append(
            KernelReport(
                name,
                arch,
                registers,
                stack + local,
                shared,
                counts,
                sum("LDGSTS" in line or "UTMALDG" in line or "UBLKCP" in line for line in lines),
                sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in lines),
            )
        )
    return reports


# Built for older GPUs too, but empty there: they have no clusters.
_NEEDS_HOPPER = ("norm_fp8_kernel",)


def cuda_kernels() -> list[KernelReport]:
    """The kernels of `mify._cuda` for the GPUs that run them; `MifyError` where it is not built."""
    spec = importlib.util.find_spec("mify._cuda")
    if spec is None or spec.origin is None:
        raise MifyError("mify._cuda is not built", "install the CUDA toolkit and run `pip install .` again")
    reports = read_binary(Path(spec.origin))
    return [report for report in reports if report.architecture >= 90 or report.readable not in _NEEDS_HOPPER]


def dynamic_shared_bytes(report: KernelReport) -> int:
    """The shared memory that the launch of one of `mify._cuda`'s kernels asks for besides what its code declares (norm:
    at the 2,560 features of mify-2.5b).
    """
    from mify import _cuda

    if report.readable == "norm_fp8_kernel":
        return _cuda.norm_fp8_shared_bytes(2560)
    match = re.fullmatch(r"gqa_decode_kernel (\d+) (\d) (\d)", report.readable)
    if match is None:
        return 0
    head_dim, fp8, column_tiles = (int(figure) for figure in match.groups())
    return _cuda.gqa_decode_shared_bytes(head_dim, "fp8_e4m3" if fp8 else "bf16", 8 * column_tiles)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise MifyError(
            f"{command[0]} failed: {done.stderr.strip()[:300]}", "check that the file is a cubin or a library"
        )
    return done.stdout


def _architecture(line: str) -> int | None:
    match = re.search(r"arch = sm_(\d+)", line)
    return int(match[1]) if match else None


def _usage(text: str) -> dict[tuple[int, str], tuple[int, int, int, int]]:
    """(architecture, function) → registers, stack, local, shared, from `cuobjdump --dump-resource-usage`."""
    found = {}
    arch, name = 0, ""
    for line in text.splitlines():
        arch = _architecture(line) or arch
        if match := re.search(r"Function\s+(\S+?):?\s*$", line):
            name = match[1]
        if match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            found[arch, name] = registers, stack, local, shared
    return found


def _instructions(text: str) -> dict[tuple[int, str], list[str]]:
    """(architecture, function) → its lines of machine code, from `cuobjdump -sass`."""
    found: dict[tuple[int, str], list[str]] = {}
    arch, lines = 0, []
    for line in text.splitlines():
        arch = _architecture(line) or arch
        if match := re.search(r"Function\s*:\s*(\S+)", line):
            lines = found.setdefault((arch, match[1]), [])
        elif "/*" in line:
            lines.append(line)
    return found
