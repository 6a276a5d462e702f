"""What this machine has (CPU, memory, GPUs), and what the GPUs that mify plans for can do. Imports no torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mify.errors import MifyError


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """The peaks of a kind of GPU, by its maker's data sheet (dense, without sparsity), and what kernels have reached.

    Args:
        bf16_flops, fp8_flops: FLOP/s of the tensor cores; 0 where the chip has no FP8.
        bandwidth: bytes/s of its memory.
        memory_bytes: usable device memory.
        reached_bf16, reached_bandwidth: what well-tuned kernels have been seen to reach; 0 where not known.
    """

    name: str
    bf16_flops: float
    fp8_flops: float
    bandwidth: float
    memory_bytes: int
    sm_count: int
    l2_bytes: int
    reached_bf16: float = 0.0
    reached_bandwidth: float = 0.0
    nvlink_bandwidth: float = 0.0
    gpus_per_node: int = 8


_GIB = 1 << 30

# Data sheets: NVIDIA A100 80GB SXM, H100 SXM5, H200 SXM5. Reached: cuBLAS bf16 about 795 TF/s on both Hoppers; a copy
# 3.08 TB/s on an H100, 4.1 to 4.3 TB/s on an H200. NVLink figures are per direction.
GPU_SPECS: dict[str, GpuSpec] = {
    "A100": GpuSpec("A100", 312e12, 0.0, 2.039e12, 80 * _GIB, 108, 40 << 20, nvlink_bandwidth=300e9),
    "H100": GpuSpec("H100", 989.4e12, 1978.9e12, 3.35e12, 80 * _GIB, 132, 50 << 20, 795e12, 3.08e12, 450e9),
    "H200": GpuSpec("H200", 989.4e12, 1978.9e12, 4.8e12, 141 * 10**9, 132, 50 << 20, 795e12, 4.2e12, 450e9),
}


def gpu_spec(name: str) -> GpuSpec:
    """The peaks of a GPU by name ("H100", "h200", "NVIDIA H100 80GB HBM3"); an unknown one raises `MifyError`."""
    upper = name.upper()
    for key, spec in GPU_SPECS.items():
        if key in upper:
            return spec
    raise MifyError(f"no peaks are known for the GPU {name!r}", f"use one of {', '.join(GPU_SPECS)}")


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor: its name, the cores and the bytes of memory that this process may use."""

    name: str
    cores: int
    memory_bytes: int


@cache
def cpu() -> Cpu:
    return Cpu(_cpu_name(), _usable_cores(), _memory_bytes())


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the platform module knows what there is to know
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def _memory_bytes() -> int:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
    limit = _cgroup("memory.max").strip()
    return min(memory, int(limit)) if limit.isdigit() else memory


def _cgroup(name: str) -> str:
    """What a container allows: a file of the control group that is mounted here, or nothing."""
    try:
        return Path("/sys/fs/cgroup", name).read_text(encoding="ascii")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as `nvidia-smi` reports it. Clocks in MHz, power in watts, memory in MiB; None where it does not say."""

    index: int
    name: str
    memory_mib: int | None
    driver: str
    compute_capability: str
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    power_limit_watts: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_SMI_FIELDS = "index,name,memory.total,driver_version,compute_cap,clocks.max.sm,clocks.max.mem,power.limit"


@cache
def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that the driver sees; empty where there is no driver or no GPU. Starts no CUDA context."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_nvidia_smi(done.stdout)


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """Reads the CSV of `nvidia-smi --query-gpu`; a field it does not know ("[N/A]") becomes None."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 8 or not cells[0].isdigit():
            continue
        number = [_number(cell) for cell in cells]
        found.append(
            Gpu(
                int(cells[0]), cells[1], _whole(number[2]), cells[3], cells[4], _whole(number[5]), _whole(number[6]),
                number[7],
            )
        )  # fmt: skip
    return tuple(found)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
