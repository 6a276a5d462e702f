"""A recipe against a scripted endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted_endpoint import Fault, ScriptedEndpoint, teacher


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedEndpoint]]:
    servers: list[ScriptedEndpoint] = []

    def start(
        fault: Callable[[dict[str, Any], int], Fault] = lambda body, number: None,
        answer: Callable[[dict[str, Any]], str] = teacher,
        delay: float = 0.0,
    ) -> ScriptedEndpoint:
        servers.append(ScriptedEndpoint(answer, fault, delay))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def grid_recipe(url: str, **head: Any) -> dict[str, Any]:
    """48 problems from a grid, taken apart."""
    return {
        "endpoints": {
            "teacher": {"url": url, "model": "teacher", "parallel": 6, "timeout_s": 5.0, "pauses_s": [0.01] * 4},
        },
        "stages": {
            "grid": {
                "kind": "grid", "topics": ["text", "graphs", "dates", "trees"], "skills": ["loops", "recursion"],
                "difficulties": ["easy", "hard"], "per_cell": 3, "max_new_tokens": 300,
            },
            "format": {"kind": "format"},
        },
        **head,
    }  # fmt: skip
