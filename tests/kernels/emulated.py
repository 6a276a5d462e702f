"""Builds a CUDA kernel's own source for the CPU (emulation/X_emulated.cpp), for the tests that run it there."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def library(name: str, params: type[ctypes.Structure], checkout: Path, folder: Path) -> ctypes.CDLL:
    """The emulation of `name`, compiled into `folder`; `params` must be the C++ structure, byte for byte."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the emulation with")
    if sys.platform != "linux":
        pytest.skip("the emulation switches contexts as Linux does")
    sources, built = checkout / "tests" / "kernels" / "emulation", folder / f"{name}.so"
    command = [compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fPIC", "-shared"]
    command += ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
    command += [f"-I{checkout / 'csrc'}", f"-I{sources}", str(sources / f"{name}_emulated.cpp"), "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "warning" not in done.stderr, done.stderr[-4000:]
    loaded = ctypes.CDLL(str(built))
    assert loaded.params_bytes() == ctypes.sizeof(params)
    return loaded
