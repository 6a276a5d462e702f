"""Bits per byte against a forward pass written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mify.config import ModelConfig
from mify.curation.documents import Document
from mify.errors import MifyError
from mify.eval.bits_per_byte import bits_per_byte, evaluate_bits_per_byte, windows
from mify.model import Model
from mify.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "x",
    "The quick brown fox jumps over the lazy dog. Größe ≥ 1\n",
    "".join(f"value_{n} = {n * n}\n" for n in range(12)),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 420)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    torch.set_num_threads(1)
    config = ModelConfig(
        name="t", num_layers=2, hidden_size=32, num_query_heads=2, num_kv_heads=1, head_dim=16, ffn_size=48,
        vocab_size=tokenizer.vocab_size, context=32, rope_theta=10000.0, rms_norm_eps=1e-5, tie_embeddings=True,
    )  # fmt: skip
    model = Model(config, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that predictions differ from token to token
    model.tokenizer = tokenizer
    return model


def bits_by_hand(model: Model, text: str) -> float:
    """Every token after the first predicted from the window that evaluation promises: at least half a context."""
    ids = model.require_tokenizer().encode(text)
    context = model.config.context
    bits = math.log2(model.config.vocab_size)
    start, end = 0, context
    for position in range(1, len(ids)):
        if position >= end:
            start, end = end - context // 2, end + context // 2
        history = torch.tensor(ids[start:position])
        with torch.no_grad():
            hidden = model(
                history, torch.arange(len(history)), torch.tensor([0, len(history)], dtype=torch.int32), context
            )
            log_probabilities = torch.log_softmax(model.logits(hidden[-1:]).double(), -1)
        bits -= float(log_probabilities[0, ids[position]]) / math.log(2)
    return bits


def test_equals_a_token_by_token_reading(model: Model) -> None:
    expected = sum(bits_by_hand(model, text) for text in TEXTS) / sum(len(text.encode()) for text in TEXTS)
    for rows in (1, 3, 64):
        assert bits_per_byte(model, TEXTS, rows_per_batch=rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 100])
def test_windows_count_every_token_but_the_first_once(length: int) -> None:
    context = 32
    seen: list[int] = []
    for tokens, first in windows(list(range(length)), context):
        assert len(tokens) <= context
        assert first >= min(1, len(tokens))
        counted = tokens[first:]
        if counted[0] > context:
            assert first >= context // 2
        seen += counted
    assert seen == list(range(1, length))


def test_a_random_model_is_near_the_uniform_code(model: Model, tokenizer: Tokenizer) -> None:
    fresh = Model(model.config, seed=0)
    fresh.tokenizer = tokenizer
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS)
    uniform = tokens * math.log2(tokenizer.vocab_size) / sum(len(text.encode()) for text in TEXTS)
    assert bits_per_byte(fresh, TEXTS) == pytest.approx(uniform, rel=0.02)


def documents(texts: list[str], domain: str) -> list[Document]:
    return [Document.create(text, domain, "python", "MIT", "s", "r", str(n)) for n, text in enumerate(texts)]


def test_domains_and_baselines(model: Model) -> None:
    held_out = documents(TEXTS[:2], "code") + documents(TEXTS[2:], "text")
    labels: list[tuple[int, int]] = []
    result = evaluate_bits_per_byte(
        model,
        held_out,
        documents(TEXTS, "code"),
        ngram_order=3,
        progress=lambda label, done, total: labels.append((done, total)),
    )
    assert set(result["domains"]) == {"code", "text"}
    row = result["domains"]["code"]
    assert row["bytes"] == sum(len(text) for text in TEXTS[:2])
    assert row["model"] == pytest.approx(bits_per_byte(model, TEXTS[:2]))
    assert row["xz_trained"] < row["xz"]  # the held-out text is in the training text here
    weights = {name: domain["bytes"] for name, domain in result["domains"].items()}
    mean = sum(result["domains"][name]["ngram"] * weight for name, weight in weights.items()) / sum(weights.values())
    assert result["all"]["ngram"] == pytest.approx(mean)
    assert labels[-1][0] == labels[-1][1]
    without = evaluate_bits_per_byte(model, held_out, xz=False)
    assert set(without["all"]) == {"bytes", "documents", "model"}


def test_nothing_to_measure(model: Model) -> None:
    with pytest.raises(MifyError, match="no held-out text"):
        bits_per_byte(model, [""])
    with pytest.raises(MifyError, match="no held-out text"):
        evaluate_bits_per_byte(model, [])
