"""Scripted endpoints that end with their test."""

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
