"""Starts tests/kernels/interpreted in a process where Triton's interpreter was chosen before triton is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU those tests run natively"),
]


def interpret(file: str, *options: str) -> None:
    """Runs a file of tests/kernels/interpreted in a process of its own."""
    path = Path(__file__).parent / "interpreted" / file
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    "file",
    [
        "test_rows_triton.py",
        "test_fp8_triton.py",
        "test_tune_triton.py",
        "test_gqa_triton.py",
        "test_fim_pack_triton.py",
        "test_gqa_extend_triton.py",
    ],
)
def test_interpreted(file: str) -> None:
    interpret(file)


@pytest.mark.slow
def test_interpreted_at_random_shapes() -> None:
    interpret("test_gqa_triton.py", "-m", "slow")
