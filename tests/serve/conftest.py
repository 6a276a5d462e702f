"""A small model with random weights and a vocabulary of its own, as a Hugging Face folder and as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mify.config import model_config
from mify.export.gguf import export_gguf
from mify.export.hf import export_hf
from mify.model import Model
from mify.special_tokens import NUM_SPECIAL
from mify.tokenizer import train_tokenizer

TEXT = "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\nThe user asks; the assistant answers.\n" * 3


@pytest.fixture(scope="session")
def model() -> Model:
    tokenizer = train_tokenizer([TEXT], 450)
    made = Model(
        model_config(
            "mify-tiny", num_layers=2, hidden_size=64, ffn_size=96, vocab_size=tokenizer.vocab_size, context=512
        ),
        seed=3,
    )
    made.tokenizer = tokenizer
    for name, parameter in made.named_parameters():
        if parameter.dim() == 2 and "embed" not in name:
            parameter.data *= 4  # so that greedy tokens are no near-ties
    made.model.embed_tokens.weight.data[:NUM_SPECIAL] = 0  # and are text
    return made.eval()


@pytest.fixture(scope="session")
def gguf(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "small.gguf"
    export_gguf(model, path, "f32")
    return path


@pytest.fixture(scope="session")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_hf(model, tmp_path_factory.mktemp("serve") / "small")
