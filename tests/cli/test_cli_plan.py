"""`mify plan` as a user runs it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mify.cli.app import app

RUN = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})


def test_the_arithmetic_is_shown() -> None:
    result = RUN.invoke(app, ["plan", "mify-2.5b", "--tokens", "4.2T", "--gpus", "64xH100"])
    assert result.exit_code == 0, result.output
    for text in (
        "2.538 B parameters",
        "35.0 days",
        "6 × 2.37B",
        "82.8×",
        "FSDP2",
        "HSDP ←",
        "nothing here was measured",
    ):
        assert text in result.output


def test_json_carries_the_figures_and_the_assumptions() -> None:
    result = RUN.invoke(app, ["plan", "mify-125m", "--tokens", "2.5B", "--gpus", "H200", "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.output)
    assert (content["format"], content["version"]) == ("mify.plan", 1)
    assert content["run"]["num_gpus"] == 1
    assert content["figures"]["parameters"] == 125_848_320
    assert content["chosen"] == "DDP"
    assert content["assumptions"]["link_efficiency"] == 0.7


@pytest.mark.parametrize(
    "arguments",
    [["mify-9b"], ["--tokens", "lots"], ["--gpus", "8xTPU"], ["--mfu", "45"], ["--document", "100000"]],
)
def test_a_mistake_is_exit_code_2_and_no_traceback(arguments: list[str]) -> None:
    result = RUN.invoke(app, ["plan", *arguments])
    assert result.exit_code == 2
    assert "mify: " in result.output
    assert "->" in result.output
    assert "Traceback" not in result.output
