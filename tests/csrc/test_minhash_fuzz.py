"""Builds the fuzz driver with AddressSanitizer and UndefinedBehaviorSanitizer and runs it on every CPU path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzzing import build, run


@pytest.fixture(scope="module")
def driver(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    csrc = checkout / "csrc"
    sources = [csrc / "cpu.cpp", *(csrc / "text").glob("*.cpp"), *(csrc / "minhash").glob("*.cpp")]
    sources.append(checkout / "tests" / "csrc" / "fuzz_minhash.cpp")
    return build(sources, [csrc], tmp_path_factory.mktemp("fuzz") / "fuzz_minhash")


@pytest.mark.slow
def test_random_inputs_break_nothing_on_any_cpu_path(driver: Path) -> None:
    digests = {disabled: run(driver, 1, 400, disabled) for disabled in ("", "avx512", "avx512,avx2,sha")}
    assert len(set(digests.values())) == 1, digests


@pytest.mark.slow
def test_many_random_inputs(driver: Path) -> None:
    assert run(driver, int(os.environ.get("MIFY_FUZZ_SEED", "2")), int(os.environ.get("MIFY_FUZZ_ITERATIONS", "3000")))
