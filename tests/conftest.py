"""What every test may ask for: a GPU, the benchmark files, the root of the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """The folder of benchmark files that MIFY_EVAL_DATA names; the test is skipped where there is none."""
    folder = os.environ.get("MIFY_EVAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MIFY_EVAL_DATA names no folder of benchmark files")
    return Path(folder)
