"""A small model with outlier channels, as trained models have them, and text for it."""

from __future__ import annotations

import inspect
import textwrap

import pytest
import torch

from mify.config import ModelConfig
from mify.model import Model
from mify.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [inspect.getsource(textwrap), inspect.getsource(inspect)[:40_000]]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts, 700)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Model:
    """Two layers; norms let every sixteenth channel through twelve times larger."""
    config = ModelConfig("toy", 2, 64, 4, 2, 32, 96, 704, 256, 5e4, tie_embeddings=True)
    made = Model(config, seed=9)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(1.0)
        for layer in made.model.layers:
            layer.input_layernorm.weight[::16] *= 12
            layer.post_attention_layernorm.weight[3::16] *= 12
    made.tokenizer = tokenizer
    return made.eval()


@pytest.fixture(scope="session")
def sequences(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    ids = tokenizer.encode(texts[0])
    return [ids[start : start + 200] for start in range(0, 1200, 200)]
