"""Builds the fuzz driver of csrc/packing with AddressSanitizer and UndefinedBehaviorSanitizer and runs it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzzing import build, run


@pytest.mark.slow
def test_random_and_damaged_inputs_break_nothing(checkout: Path, tmp_path: Path) -> None:
    csrc, tests = checkout / "csrc", checkout / "tests"
    sources = [*(csrc / "packing").glob("*.cpp"), tests / "csrc" / "fuzz_packing.cpp"]
    driver = build(sources, [csrc, tests / "kernels" / "emulation"], tmp_path / "fuzz_packing")
    seed = int(os.environ.get("MIFY_FUZZ_SEED", "1"))
    first = run(driver, seed, int(os.environ.get("MIFY_FUZZ_ITERATIONS", "1000")))
    assert first == run(driver, seed, int(os.environ.get("MIFY_FUZZ_ITERATIONS", "1000")))
