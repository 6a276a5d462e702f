"""`mify import` and `mify export` as a user runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mify.cli.app import app
from mify.export import llama_cpp
from mify.export.hf import export_hf
from mify.loading import load
from mify.model import Model

RUN = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})


@pytest.fixture
def folder(tmp_path: Path, make_model: Callable[..., Model]) -> Path:
    return export_hf(make_model(), tmp_path / "hf")


def mify(*arguments: object) -> tuple[int, str]:
    result = RUN.invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_round_trip_through_both_formats(tmp_path: Path, folder: Path, make_model: Callable[..., Model]) -> None:
    code, output = mify("export", folder, "--to", "gguf", "--dtype", "f32", "--out", tmp_path / "m.gguf")
    assert code == 0, output
    assert "M parameters" in output
    code, output = mify("import", tmp_path / "m.gguf", "--out", tmp_path / "again")
    assert code == 0, output
    assert "2 layers, heads 4/2, context 256" in output
    assert torch.equal(load(tmp_path / "again").head_weight, make_model().head_weight)


def test_gguf_is_f16_by_default_and_checked_on_demand(tmp_path: Path, folder: Path) -> None:
    flags = ["--check"] if llama_cpp.available() else []
    code, output = mify("export", folder, "--to", "gguf", "--out", tmp_path / "m.gguf", *flags)
    assert code == 0, output
    assert not flags or "llama.cpp loads and runs it" in output
    assert (tmp_path / "m.gguf").stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("kind", ["fp8", "int8", "int4"])
def test_quantized_folders_load_again(tmp_path: Path, folder: Path, kind: str) -> None:
    code, output = mify("export", folder, "--to", kind, "--out", tmp_path / kind)
    assert code == 0, output
    assert load(tmp_path / kind).config == load(folder).config
    assert (tmp_path / kind / "model.safetensors").stat().st_size < (folder / "model.safetensors").stat().st_size / 2


@pytest.mark.parametrize("kind", ["awq", "trtllm"])
def test_calibrated_folders_are_written(tmp_path: Path, folder: Path, corpus: list[str], kind: str) -> None:
    (tmp_path / "text.py").write_text(corpus[0])
    code, output = mify("export", folder, "--to", kind, "--calibration", tmp_path / "text.py", "--out", tmp_path / kind)
    assert code == 0, output
    assert "calibrated on 8361 tokens" in output
    assert (tmp_path / kind / "hf_quant_config.json").exists() == (kind == "trtllm")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("export", "{hf}", "--to", "onnx", "--out", "{out}"), "--to onnx is not known"),
        (("export", "{hf}", "--to", "hf", "--dtype", "q8_0", "--out", "{out}"), "q8_0 is no dtype of a Hugging Face"),
        (("export", "{hf}", "--to", "gguf", "--dtype", "int4", "--out", "{out}"), "unknown GGUF dtype 'int4'"),
        (("export", "{hf}", "--to", "fp8", "--check", "--out", "{out}"), "--check does not go with --to fp8"),
        (("export", "{hf}", "--to", "awq", "--out", "{out}"), "--to awq needs --calibration"),
        (("export", "{hf}", "--to", "fp8", "--calibration", "{hf}", "--out", "{out}"), "does not take --calibration"),
        (("export", "{hf}", "--to", "awq", "--calibration", "{out}", "--out", "{out}"), "does not exist"),
        (("export", "{out}", "--to", "hf", "--out", "{out}"), "does not exist"),
        (("import", "{hf}", "--out", "{hf}"), "is the source itself"),
        (("import", "{hf}", "--dtype", "int4", "--out", "{out}"), "int4 is not known"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(
    tmp_path: Path, folder: Path, arguments: tuple[str, ...], named: str
) -> None:
    filled = [argument.format(hf=folder, out=tmp_path / "out") for argument in arguments]
    code, output = mify(*filled)
    assert code == 2
    assert named in output
    assert "Traceback" not in output
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert load(folder).config.name == "toy"
