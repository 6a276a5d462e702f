"""Builds the fuzz drivers with AddressSanitizer and UndefinedBehaviorSanitizer, and runs them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

FLAGS = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# As CMakeLists.txt compiles them.
ISA = {
    "_avx2": ["-mavx2", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt"],
    "_avx512": [
        "-mavx2", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
    ],
    "_sha": ["-msha", "-msse4.1", "-mssse3"],
}  # fmt: skip


def build(sources: Sequence[Path], includes: Sequence[Path], program: Path) -> Path:
    """Compiles and links `sources`; skips the test where there is no compiler or no sanitizer runtime."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    x86 = platform.machine() in ("x86_64", "AMD64")

    def compile_one(source: Path) -> Path | None:
        isa = next((suffix for suffix in ISA if source.stem.endswith(suffix)), None)
        if isa is not None and not x86:
            return None
        target = program.parent / f"{source.parent.name}_{source.stem}.o"
        extra = [*(ISA[isa] if isa else []), *(["-DMIFY_X86=1"] if x86 else []), *(f"-I{path}" for path in includes)]
        done = subprocess.run(
            [compiler, *FLAGS, *extra, "-c", str(source), "-o", str(target)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(target) for target in pool.map(compile_one, sources) if target is not None]
    done = subprocess.run([compiler, *FLAGS, *objects, "-o", str(program), "-lpthread"], capture_output=True, text=True)
    if done.returncode != 0 and "asan" in done.stderr:
        pytest.skip("the compiler has no sanitizer runtime")
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path, seed: int, iterations: int, disabled: str = "") -> str:
    """The digest that a driver prints. Args: disabled: instruction sets that must not be used, "avx2,sha"."""
    environment = os.environ | {"MIFY_CPU_DISABLE": disabled}
    done = subprocess.run(
        [str(program), str(seed), str(iterations)], env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()
