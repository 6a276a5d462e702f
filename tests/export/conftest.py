"""A small tokenizer, small models with random weights, and text that is hard to tokenize."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mify.config import ModelConfig
from mify.model import Model
from mify.tokenizer import Tokenizer, train_tokenizer

HARD = [
    "def f(x):\n    return x+12345 if x>=0 else None  # naïve é 中文 🙂\n",
    "\n\n\n\tclass A:\r\n  pass   \n\r\n\r \t \n   x",
    "'don\\'t I'LL it's we'Ve ſ 'S 42 3.14 1e-10 0xFF ½ ² Ⅷ ٣٤٥ 12345678901234567890",
    "a\u00a0b\u2003c\u3000d\u200be\ufeff \u0085 \u2028 x",
    "e\u0301 n\u0303 한국어 日本語テキスト العربية עברית हिन्दी ไทย 👩‍👩‍👧‍👦 🇩🇪",
    "____init____ ######## ======== ->>> <<= !==  ...  (([[{{}}]]))  ;;",
    "a <|endoftext|> b <|fim_prefix|>c<|fim_suffix|><|im_start|>user\nhi<|im_end|> <think>",
    "   leading and trailing   ",
    "\x00\x01\x7f \u001b[0m",
    "x" * 300 + " " * 300 + "\n" * 50 + "7" * 50,
]
"""Texts on which tokenizers come apart."""


def _corpus() -> list[str]:
    return [inspect.getsource(textwrap), inspect.getsource(inspect)[:60_000], *HARD]


@pytest.fixture(scope="session")
def hard_texts() -> list[str]:
    return HARD


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return _corpus()


@pytest.fixture(scope="session")
def tokenizer(corpus: list[str]) -> Tokenizer:
    return train_tokenizer(corpus, 700)


@pytest.fixture(scope="session")
def make_model(tokenizer: Tokenizer) -> Callable[..., Model]:
    """make_model(seed=0, **fields): two layers, weights large enough that greedy tokens are not near-ties."""

    def make(seed: int = 0, **fields: Any) -> Model:
        shape: dict[str, Any] = {
            "name": "toy",
            "num_layers": 2,
            "hidden_size": 64,
            "num_query_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 32,
            "ffn_size": 96,
            "vocab_size": 704,
            "context": 256,
            "rope_theta": 5e4,
            "rms_norm_eps": 1e-5,
            "tie_embeddings": True,
        }
        model = Model(ModelConfig(**(shape | fields)))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.2, generator=generator)
                if parameter.dim() == 1:
                    parameter.add_(1.0)
        model.tokenizer = tokenizer
        return model.eval()

    return make


@pytest.fixture(scope="session")
def logits() -> Callable[[Model, list[int]], torch.Tensor]:
    """logits(model, ids) → (len(ids), V)."""

    @torch.no_grad()
    def compute(model: Model, ids: list[int]) -> torch.Tensor:
        count = len(ids)
        bounds = torch.tensor([0, count], dtype=torch.int32)
        return model.logits(model(torch.tensor(ids), torch.arange(count), bounds, count))

    return compute


@pytest.fixture(scope="session")
def greedy(logits: Callable[[Model, list[int]], torch.Tensor]) -> Callable[[Model, list[int], int], list[int]]:
    """greedy(model, ids, n): argmax without a cache, over end tokens as over others."""

    def decode(model: Model, ids: list[int], count: int) -> list[int]:
        tokens = list(ids)
        for _ in range(count):
            tokens.append(int(logits(model, tokens)[-1].argmax()))
        return tokens[len(ids) :]

    return decode


@pytest.fixture
def folder_bytes() -> Callable[[Path], dict[str, bytes]]:
    """folder_bytes(folder): name → content of its files."""
    return lambda folder: {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def close() -> Callable[[torch.Tensor, torch.Tensor], bool]:
    """close(expected, found): fp32 sums in another order, at the size of the logits."""
    return lambda expected, found: bool((expected - found).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1.0))
