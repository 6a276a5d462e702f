"""The model card says what the files say, and nothing where there is no file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mify.errors import MifyError
from mify.export.hf import export_hf
from mify.export.model_card import CardFacts
from mify.export.quantized import export_quantized
from mify.model import Model

CORPUS: dict[str, Any] = {
    "format": "curation-report",
    "version": "1",
    "totals": {"rejected": {"documents": 12}},
    "train": {
        "documents": 30,
        "bytes": 3_000_000,
        "domains": {"code": {"documents": 20, "bytes": 2_340_000}, "text": {"documents": 10, "bytes": 660_000}},
        "licenses": {"MIT": {"documents": 30, "bytes": 3_000_000}},
    },
    "decontamination": {"benchmarks": {"humaneval": {"tasks": 164}}},
    "mixture": {"statement": "to train code/text at 78:22: code is repeated 1.2 times"},
}
EVALUATION: dict[str, Any] = {
    "format": "evaluations",
    "version": 1,
    "results": [
        {
            "task": "humaneval",
            "items": 164,
            "of_items": 164,
            "scores": {"pass@1": {"value": 0.0427, "low": 0.0122, "high": 0.0793}},
            "model": {"name": "toy"},
            "contamination": {"contaminated": 3},
        },
        {"task": "bits_per_byte", "domains": {"code": {"model": 2.5}}, "all": {"model": 2.5}},
    ],
}


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_without_files_nothing_is_claimed(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    model = make_model()
    export_hf(model, tmp_path / "hf")
    text = card(tmp_path / "hf")
    assert f"{model.num_parameters():,}" in text
    assert "Refusals, over-refusals and insecure code: not measured." in text
    for section in ("Training data\n\nNot stated.", "Evaluation\n\nNot measured.", "License\n\nNot stated."):
        assert section in text
    assert "license:" not in text
    assert "<|fim_prefix|>" in text
    assert "4 / 2, 32 wide" in text


def test_figures_are_those_of_the_files(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(CORPUS))
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    facts = CardFacts.read("Apache-2.0", tmp_path, tmp_path / "evaluation.json")
    export_quantized(make_model(), tmp_path / "fp8", "fp8", facts=facts)
    text = card(tmp_path / "fp8")
    for line in (
        "license: apache-2.0",
        "- fp8",
        "| humaneval pass@1 | 4.3% | 1.2% to 7.9% | 164 of 164 items; 3 of them stand in the training data |",
        "| held-out bits per byte, code | 2.500 |  |  |",
        "before quantization",
        "| code | 20 | 2.3 MB | 78.0% |",
        "| MIT | 30 | 3.0 MB | 100.0% |",
        "Decontaminated against: humaneval.",
        "code is repeated 1.2 times",
        "(12 documents rejected)",
        "embedding, output matrix and norms in bfloat16",
    ):
        assert line in text, line


def test_the_front_matter_is_yaml(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    yaml = pytest.importorskip("yaml")
    export_hf(make_model(), tmp_path / "hf", facts=CardFacts("MIT"))
    _, front, _ = card(tmp_path / "hf").split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "tags": ["code", "fill-in-the-middle"],
    }


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({**CORPUS, "version": "9"}))
    with pytest.raises(MifyError, match=r"curation-report of version 1 \(found curation-report, 9\)"):
        CardFacts.read(corpus=tmp_path)
    with pytest.raises(MifyError, match="does not exist"):
        CardFacts.read(evaluation=tmp_path / "evaluation.json")


def test_safety_is_what_was_tuned_on_and_measured(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    def line(category: str) -> str:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return json.dumps({"messages": messages, "category": category})

    (tmp_path / "general.jsonl").write_text("\n".join([line("")] * 7 + [line("python")]))
    (tmp_path / "safety.jsonl").write_text("\n".join([line("1.2.7"), line("16.45.8")]))
    scores = {"refused": {"value": 0.75, "low": 0.5, "high": 0.9}}
    results = [
        {"task": "airbench", "items": 40, "of_items": 40, "scores": scores, "model": {"name": "toy"}}
        | {"judged": {"how": "refusal by its words"}},
        {"task": "false-refusals", "items": 50, "of_items": 750, "model": {"name": "toy"}}
        | {"scores": {"answered": {"value": 0.9, "low": 0.8, "high": 1.0}}, "judged": {"how": "refusal by its words"}},
    ]
    (tmp_path / "evaluation.json").write_text(json.dumps({**EVALUATION, "results": results}))
    files = [tmp_path / "general.jsonl", tmp_path / "safety.jsonl"]
    facts = CardFacts.read(evaluation=tmp_path, conversations=files)
    export_hf(make_model(), tmp_path / "hf", facts=facts)
    text = card(tmp_path / "hf")
    for expected in (
        "Tuned on 10 conversations, 2 of them answers to harmful requests (1 to 4 others) in 2 of the 314 categories",
        "| Security Risks | 1 |",
        "Without any: Operational Misuses, ",
        "| harmful requests (AIR-Bench 2024) that are declined | 75.0% | 50.0% to 90.0% | 40 | refusal by its words |",
        "(CyberSecEval) that are answered | 90.0% | 80.0% to 100.0% | 50 |",
        "A model that declines everything",
    ):
        assert expected in text, expected
    (tmp_path / "safety.jsonl").write_text("{}")
    with pytest.raises(MifyError, match="safety.jsonl, line 1: no messages"):
        CardFacts.read(conversations=files)
