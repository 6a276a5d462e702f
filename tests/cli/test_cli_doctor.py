"""`mify doctor` as a user runs it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mify import doctor
from mify.cli.app import app
from mify.doctor import Finding

RUN = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})


def test_this_machine_is_described() -> None:
    result = RUN.invoke(app, ["doctor", "--json"])
    content = json.loads(result.output)
    assert (content["format"], content["version"]) == ("mify.doctor", 1)
    assert {finding["part"] for finding in content["findings"]} == {
        "machine", "C++", "torch", "GPU", "packages", "programs", "disk", "kernels", "FP8",
    }  # fmt: skip
    assert result.exit_code == (0 if content["ready"] else 1)
    for finding in content["findings"]:
        assert finding["state"] in ("used", "there", "absent", "broken")
        assert finding["state"] in ("used", "there") or finding["why"]


@pytest.mark.parametrize(
    ("state", "code", "verdict"), [("used", 0, "ready: models"), ("broken", 1, "not ready: engine")]
)
def test_exit_code_and_verdict(monkeypatch: pytest.MonkeyPatch, state: str, code: int, verdict: str) -> None:
    finding = Finding("machine", "engine", state, "[found] it", "because", "mend it")  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "diagnose", lambda _folder: [finding])
    result = RUN.invoke(app, ["doctor"])
    assert result.exit_code == code
    assert verdict in result.output
    assert "[found] it" in result.output
    assert ("mend it" in result.output) == (state == "broken")
