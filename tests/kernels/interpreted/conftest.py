"""Triton's kernels by their numbers: on a GPU where there is one, otherwise in Triton's interpreter.

The interpreter has to be chosen before triton is imported, so without a GPU these tests run in a process of their own,
which tests/kernels/test_interpreted.py starts; otherwise they are not collected.
"""

from __future__ import annotations

import os

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The interpreter's bfloat16 products are wrong, so there bfloat16 is left out."""
    if request.param == "bfloat16" and not torch.cuda.is_available():
        pytest.skip("the interpreter multiplies bfloat16 matrices wrongly")
    return getattr(torch, request.param)


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there is a GPU these are tests of it: the GPU autopilot runs what is so marked."""
    if torch.cuda.is_available():
        for item in items:
            if "interpreted" in item.path.parts:
                item.add_marker(pytest.mark.gpu)
