"""The demo from start to end, small: its artefacts, and that a run killed in every stage leaves the same ones."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAGES = ("curate", "tokenizer", "tokenize", "train", "evaluate", "export")
COMMAND = [
    sys.executable, "-c", "from mify.cli import main; main()", "demo",
    "--megabytes", "1.5", "--vocab-size", "1024", "--steps", "12", "--problems", "4",
]  # fmt: skip


def start(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    # Relative paths inside: two runs in different folders have the same configuration.
    return subprocess.Popen(
        COMMAND, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(folder: Path) -> str:
    process = start(folder)
    output = process.communicate(timeout=1500)[0].decode()
    assert process.returncode == 0, output
    return output


def artefacts(folder: Path) -> dict[str, str]:
    """The hash of every artefact, times aside: stamps, the pages of reports and the picture of seconds hold times."""
    found = {}
    for path in sorted(item for item in (folder / "mify-demo").rglob("*") if item.is_file()):
        name = path.relative_to(folder / "mify-demo").as_posix()
        if name.startswith("stages/") or path.name in ("report.html", "stages.png") or "tensorboard" in name:
            continue
        data = path.read_bytes()
        if name.endswith("metrics.jsonl"):
            records = [json.loads(line) for line in data.splitlines()]
            data = json.dumps([{k: v for k, v in record.items() if k != "time"} for record in records]).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(folder)
    return folder


@pytest.mark.slow
def test_every_artefact_is_there(uninterrupted: Path) -> None:
    out = uninterrupted / "mify-demo"
    for name in (
        "corpus/documents.parquet", "corpus/rejected.parquet", "corpus/held_out.parquet", "corpus/report.json",
        "tokenizer/tokenizer.json", "tokens/code/meta.json", "runs/demo/metrics.jsonl", "evaluation/evaluation.json",
        "export/hf/model.safetensors", "export/mify-tiny.gguf", "export/parity.json",
        "report.html", "funnel.png", "composition.png", "loss.png", "stages.png",
    ):  # fmt: skip
        assert (out / name).stat().st_size > 0, name
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert 'src="http' not in page
    assert "href" not in page
    parity = json.loads((out / "export" / "parity.json").read_text())
    assert parity["hf"]["equal"] is True
    assert parity["gguf"]["equal"] in (True, None)  # None: llama.cpp is not installed


@pytest.mark.slow
def test_a_second_run_does_nothing_again(uninterrupted: Path) -> None:
    before = artefacts(uninterrupted)
    output = finish(uninterrupted)
    assert output.count("done before") == len(STAGES), output
    assert artefacts(uninterrupted) == before


@pytest.mark.slow
def test_killed_in_every_stage_it_leaves_the_same_artefacts(uninterrupted: Path, tmp_path: Path) -> None:
    for number, stage in enumerate(STAGES):
        process = start(tmp_path)
        note = tmp_path / "mify-demo" / "stages" / f"{stage}.started"
        deadline = time.monotonic() + 900
        while not note.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        # Somewhere inside the stage, at another place for each: training is met between its steps.
        checkpoints = tmp_path / "mify-demo" / "runs" / "demo" / "metrics.jsonl"
        if stage == "train":
            while process.poll() is None and (not checkpoints.exists() or checkpoints.read_bytes().count(b"\n") < 5):
                time.sleep(0.02)
        else:
            time.sleep(0.3 * (number % 3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(tmp_path)
    expected = artefacts(uninterrupted)
    found = artefacts(tmp_path)
    assert found.keys() == expected.keys()
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, different


@pytest.mark.parametrize("content", [None, "x"])
def test_a_wrong_folder_is_refused(tmp_path: Path, content: str | None) -> None:
    target = tmp_path / "out"
    if content is None:
        target.mkdir()
        (target / "thesis.tex").write_text("precious")
    else:
        target.write_text(content)
    result = subprocess.run([*COMMAND, "--out", str(target), "--fresh"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert str(target) in result.stderr
    assert target.exists()
