"""The quantization study on a small model: rows add up, finished rows are not measured again, bad input is named."""

from __future__ import annotations

import inspect
import math
import textwrap
from pathlib import Path

import pytest

from mify.config import model_config
from mify.curation.documents import Document, write_documents
from mify.errors import MifyError
from mify.eval.completers import MifyCompleter
from mify.eval.humaneval import humaneval
from mify.eval.records import Journal
from mify.eval.runner import RunOptions
from mify.eval.tasks import Task
from mify.export.hf import export_hf
from mify.files import read_json
from mify.loading import load
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
    assert (stored["format"], stored["version"]) == ("mify-quantization-study", 2)
    assert len(stored["rows"]) == 4
    said.clear()
    again = run_quant_study(
        [model], held_out, calibration, tmp_path, methods=methods, problems=0, calibration_tokens=1500, say=said.append
    )
    assert not said
    assert again == rows


def test_humaneval_is_compared_problem_by_problem(
    made: tuple[Path, Path, HeldOut], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calibration, held_out = made

    def run_task(task: Task, completer: MifyCompleter, out: Path, options: RunOptions) -> None:
        """A benchmark in which the quantized model loses the second problem, and half of the third."""
        right = {"bf16": (2, 2, 1, 0), "awq4": (2, 0, 0, 0)}[completer.name.partition("-")[0]]
        assert (options.samples, options.temperature, options.limit) == (2, 0.2, 4)
        with Journal(out / "humaneval.verdicts.jsonl", "verdicts", {}, ("id", "sample")) as journal:
            for item, passed in zip(task.items[:4], right, strict=True):
                for sample in range(2):
                    journal.add({"id": item.id, "sample": sample, "status": "passed" if sample < passed else "failed"})

    monkeypatch.setattr("mify.eval.runner.run_task", run_task)
    base, awq4 = run_quant_study(
        [model], held_out, calibration, tmp_path, methods=["awq4"], problems=4, samples=2, calibration_tokens=1500,
        say=lambda _: None,
    )  # fmt: skip
    assert (base.pass_at_1, awq4.pass_at_1) == (5 / 8, 2 / 8)
    assert base.passes is None
    assert awq4.passes is not None
    assert (awq4.passes.mean, awq4.passes.won, awq4.passes.lost, awq4.passes.p) == (-3 / 8, 0, 2, 0.5)
    assert awq4.passes.low < -3 / 8 < awq4.passes.high <= 0
    # The published solutions' code length by a model that knows nothing: about log2 of the vocabulary a token; of a
    # solution longer than the context, what is left.
    items, encode = humaneval().items[:4], load(model).require_tokenizer().encode
    solutions = [item.fields["canonical_solution"] for item in items]
    tokens = sum(min(len(encode(solution)), 127) for solution in solutions)
    size = sum(map(len, solutions))
    assert base.solution_bits == pytest.approx(tokens * math.log2(704) / size, rel=0.05)
    assert awq4.solution_bits == pytest.approx(base.solution_bits * (1 + awq4.solution_change))
    assert "HumanEval -37.5 points" in conclusion([base, awq4])


def test_bad_input(made: tuple[Path, Path, HeldOut], tmp_path: Path) -> None:
    model, calibration, held_out = made
    with pytest.raises(MifyError, match="unknown method 'fp3'"):
        run_quant_study([model], held_out, calibration, tmp_path, methods=("fp3",), say=print)
    with pytest.raises(MifyError, match="no model"):
        run_quant_study([], held_out, calibration, tmp_path, say=print)
