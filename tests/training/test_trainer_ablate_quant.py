"""The quantization study on a small model: rows add up, finished rows are not measured again, bad input is named."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import pytest

from mify.config import model_config
from mify.curation.documents import Document, write_documents
from mify.errors import MifyError
from mify.export.hf import export_hf
from mify.files import read_json
from mify.model import Model
from mify.tokenizer import train_tokenizer
from mify.training.ablate_quant import conclusion, run_quant_study
from mify.training.evaluate import HeldOut


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, HeldOut]:
    folder = tmp_path_factory.mktemp("quant")
    texts = [inspect.getsource(textwrap), inspect.getsource(inspect)[:20_000]]
    model = Model(model_config("mify-tiny", num_layers=2, vocab_size=704, context=128))
    model.tokenizer = train_tokenizer(texts, 700)
    export_hf(model, folder / "tiny")
    documents = [Document.create(text, "code", "python", "MIT", "t", "r", f"{i}.py") for i, text in enumerate(texts)]
    write_documents(folder / "documents.parquet", documents)
    pieces = [texts[1][start : start + 300] for start in range(0, 1500, 300)]
    held_out = [Document.create(text, "code", "python", "MIT", "t", "r", f"{i}") for i, text in enumerate(pieces)]
    return folder / "tiny", folder / "documents.parquet", HeldOut(held_out, max_bytes_per_domain=2000)


def test_rows_of_every_method(made: tuple[Path, Path, HeldOut], tmp_path: Path) -> None:
    model, calibration, held_out = made
    said: list[str] = []
    methods = ("fp8", "awq8", "awq4")
    rows = run_quant_study(
        [model], held_out, calibration, tmp_path, methods=methods, problems=0, calibration_tokens=1500, say=said.append
    )
    assert [row.method for row in rows] == ["bf16", *methods]
    assert said == [f"tiny: {row.method}" for row in rows]
    base, fp8, awq8, awq4 = rows
    assert (base.change, base.decode_speedup, base.seconds) == (0, 1, 0)
    assert base.megabytes > fp8.megabytes > awq4.megabytes
    assert base.decode_speedup < awq8.decode_speedup < fp8.decode_speedup < awq4.decode_speedup
    for row in rows[1:]:
        assert row.low <= row.change <= row.high
        assert row.bits_per_byte == pytest.approx(base.bits_per_byte * (1 + row.change))
        assert abs(row.change) < 0.02
    assert "tiny, awq4" in conclusion(rows)
    stored = read_json(tmp_path / "quantization.json")
    assert (stored["format"], stored["version"]) == ("mify-quantization-study", 1)
    assert len(stored["rows"]) == 4
    said.clear()
    again = run_quant_study(
        [model], held_out, calibration, tmp_path, methods=methods, problems=0, calibration_tokens=1500, say=said.append
    )
    assert not said
    assert again == rows


def test_bad_input(made: tuple[Path, Path, HeldOut], tmp_path: Path) -> None:
    model, calibration, held_out = made
    with pytest.raises(MifyError, match="unknown method 'fp3'"):
        run_quant_study([model], held_out, calibration, tmp_path, methods=("fp3",), say=print)
    with pytest.raises(MifyError, match="no model"):
        run_quant_study([], held_out, calibration, tmp_path, say=print)
