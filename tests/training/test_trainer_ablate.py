"""Comparisons and the scaling fit against data whose answer is known; evaluation against the whole-corpus figure."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mify.config import ModelConfig
from mify.curation.documents import Document
from mify.errors import MifyError
from mify.eval.bits_per_byte import bits_per_byte
from mify.model import Model
from mify.tokenizer import Tokenizer, train_tokenizer
from mify.training.ablate import Difference, compare, fim_study, mix_study
from mify.training.config import load_recipe
from mify.training.evaluate import HeldOut
from mify.training.scaling import Curve, Fit, Point, conclusion, fit

TEXT = "def add(first, second):\n    total = first + second\n    return total\n\n\nprint(add(1, 2))\n"


def runs(*biases: float, documents: int = 400, noise: float = 0.05) -> list[dict[str, list[tuple[str, int, float]]]]:
    """One run a bias: documents of 100 bytes whose bits per byte are 2 + difficulty + bias + noise."""
    difficulty = np.random.default_rng(0).normal(0, 0.5, documents)
    found = []
    for seed, bias in enumerate(biases):
        own = np.random.default_rng(100 + seed + int(1e6 * abs(bias))).normal(0, noise, documents)
        bits = 100 * (2 + difficulty + bias + own)
        found.append({"code": [(str(index), 100, float(value)) for index, value in enumerate(bits)]})
    return found


def test_pairing_sees_what_lies_far_below_the_spread_of_documents() -> None:
    found = compare("code", "b", runs(0.0, 0.0, 0.0), runs(-0.02, -0.021, -0.019))
    assert found.mean == pytest.approx(-0.02, abs=0.006)
    assert found.low < found.mean < found.high < 0
    assert found.verdict == "better"
    assert found.high - found.low < 0.02  # unpaired it would be above 2 * 1.96 * 0.5 / sqrt(400) = 0.098
    assert compare("code", "b", runs(-0.02, -0.02), runs(0.0, 0.0)).verdict == "worse"


def test_seeds_that_disagree_are_no_evidence() -> None:
    found = compare("code", "b", runs(0.0, 0.0, 0.0), runs(-0.1, 0.08, -0.02))
    assert found.verdict == "not told apart"
    assert found.low < 0 < found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        base = [{"code": [(str(i), 50, float(v)) for i, v in enumerate(rng.normal(100, 10, 60))]}]
        other = [{"code": [(n, s, v + rng.normal(1.0, 2.0)) for n, s, v in base[0]["code"]]}]
        found = compare("code", "b", base, other)
        hits += found.low <= 1.0 / 50 <= found.high
    assert 51 <= hits <= 60


def test_a_difference_needs_every_seed() -> None:
    assert Difference("code", "b", 2, 2, -0.1, -0.2, -0.01, (-0.2, 0.01)).verdict == "not told apart"


@pytest.mark.parametrize("recipe", ["ablate-mix", "cpt-350m"])
def test_the_studies_change_only_what_they_study(tmp_path: Path, recipe: str) -> None:
    """Also where the recipe has sources of its own."""
    mixes = [load_recipe(recipe, v.overrides) for v in mix_study(tmp_path, recipe).variants]
    assert [{k: s.weight for k, s in c.data.sources.items()} for c in mixes] == [
        {"code": 78, "text": 12, "math": 10},
        {"code": 92.7, "text": 4.9, "math": 2.4},
        {"code": 100},
    ]
    assert len({c.seed for c in mixes}) == len({c.data.fim for c in mixes}) == 1
    rates = [load_recipe(recipe, v.overrides) for v in fim_study(tmp_path, recipe).variants]
    assert [c.data.fim.rate for c in rates] == [0.0, 0.15, 0.25, 0.3]
    assert len({tuple(c.data.sources) for c in rates}) == 1


TRUTH = Curve(0.7, 40.0, 0.35, 300.0, 0.4)


def ladder(noise: float = 0.0) -> list[Point]:
    rng = np.random.default_rng(3)
    return [
        Point(f"{n}-{d}", n, d, TRUTH(n, d) * math.exp(noise * rng.normal()))
        for n in (200_000, 500_000, 1_000_000, 2_500_000)
        for d in (200_000, 600_000, 2_000_000, 6_000_000)
    ]


def test_the_fit_finds_the_curve_that_made_the_points() -> None:
    found = fit(ladder(), resamples=20)
    assert found.residual < 1e-3
    for n, d in ((300_000, 1_000_000), (10_000_000, 30_000_000)):
        assert found.curve(n, d) == pytest.approx(TRUTH(n, d), rel=0.01)
    assert found.curve.alpha == pytest.approx(TRUTH.alpha, abs=0.05)
    assert found.curve.beta == pytest.approx(TRUTH.beta, abs=0.05)


def test_the_optimum_is_the_best_split_of_the_compute() -> None:
    flops = 6e13
    n, d = TRUTH.optimum(flops)
    assert 6 * n * d == pytest.approx(flops)
    assert all(TRUTH(n * f, d / f) > TRUTH(n, d) for f in (0.9, 0.99, 1.01, 1.1))
    with pytest.raises(MifyError, match="gains nothing"):
        Curve(1.0, 0.0, 0.3, 1.0, 0.3).optimum(flops)


def test_error_bars_widen_with_noise_and_cover_the_truth() -> None:
    quiet, noisy = (fit(ladder(noise), resamples=40) for noise in (0.002, 0.02))

    def far(curve: Curve) -> float:
        return curve(10_000_000, 30_000_000)

    def width(found: Fit) -> float:
        low, high = found.interval(far)
        return high - low

    assert width(quiet) < width(noisy)
    low, high = noisy.interval(far)
    assert low <= TRUTH(10_000_000, 30_000_000) <= high


def test_the_conclusion_gives_the_optimum_or_says_that_there_is_none() -> None:
    said = conclusion(fit(ladder(), resamples=20))
    assert said.startswith("At 9e+14 FLOPs, ten times the largest run: ")
    assert "100% of the resampled curves have an optimum" in said
    flat = [Point(p.name, p.parameters, p.tokens, TRUTH(500_000, p.tokens)) for p in ladder()]
    assert conclusion(fit(flat, resamples=5)).startswith("No optimum: the curve gains nothing from size or from tokens")


def test_too_few_points_are_refused() -> None:
    with pytest.raises(MifyError, match="do not fix five numbers"):
        fit(ladder()[:4])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT] * 3, 400)


def held_out_model(tokenizer: Tokenizer) -> Model:
    model = Model(ModelConfig("toy", 2, 32, 2, 1, 16, 48, tokenizer.vocab_size, 96, tie_embeddings=True), seed=1)
    model.tokenizer = tokenizer
    return model


def test_document_bits_add_up_to_bits_per_byte(tokenizer: Tokenizer) -> None:
    documents = [
        Document.create(TEXT * (index + 1), domain, "Python", "MIT", "s", "r", f"{domain}{index}")
        for domain in ("code", "text")
        for index in range(3)
    ]
    held_out = HeldOut(documents, max_bytes_per_domain=10_000, infilling=3)
    model = held_out_model(tokenizer).train()
    whole, parts = held_out.bits_per_byte(model), held_out.document_bits(model)
    assert model.training
    assert list(whole) == ["code", "text"]
    for domain, rows in parts.items():
        assert sum(bits for *_, bits in rows) / sum(size for _, size, _ in rows) == pytest.approx(
            whole[domain], rel=1e-5
        )
    texts = [document.text for document in documents if document.domain == "code"]
    assert whole["code"] == pytest.approx(bits_per_byte(model, texts))


def test_infilling_bits_are_the_middles_alone_even_where_the_prompt_is_cut(tokenizer: Tokenizer) -> None:
    document = Document.create(TEXT * 4, "code", "Python", "MIT", "s", "r", "p")
    held_out = HeldOut([document], max_bytes_per_domain=10_000, infilling=2)
    model = held_out_model(tokenizer)
    rows = held_out.infilling_bits(model)
    assert len(rows) == len(held_out.infilling_exact(model)) == 2
    with torch.no_grad():  # a model that knows nothing spends log2(V) on each token of the middle and on its end
        model.head_weight.zero_()
    items = {item.id: item for item in held_out.lines.items} if held_out.lines else {}
    for name, size, bits in held_out.infilling_bits(model):
        middle = items[name].fields["middle"]
        assert size == len(middle.encode())
        assert bits == pytest.approx((len(tokenizer.encode(middle)) + 1) * math.log2(tokenizer.vocab_size), rel=1e-4)


def test_documents_are_taken_until_the_domain_has_its_bytes(tokenizer: Tokenizer) -> None:
    documents = [Document.create("x" * 60, "code", "Python", "MIT", "s", "r", str(index)) for index in range(5)]
    assert len(HeldOut(documents, max_bytes_per_domain=130).documents["code"]) == 2
