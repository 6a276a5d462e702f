"""A small tokenizer trained on the standard library, and shards of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from data_oracles import MakeShards, TextOf, slow_encoder

from mify.data.shards import TokenShards, write_shards
from mify.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def sources() -> list[str]:
    """Real Python files, the same on every run."""
    folder = Path(os.__file__).parent
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))[:70]]


@pytest.fixture(scope="session")
def tokenizer(sources: list[str]) -> Tokenizer:
    return train_tokenizer(sources[:40], 2048)


@pytest.fixture(scope="session")
def encode_slowly(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Encoding by `tokenizers` itself."""
    slow = slow_encoder(tokenizer)
    return lambda text: slow.encode(text, add_special_tokens=False).ids


@pytest.fixture
def make_shards(tmp_path: Path, tokenizer: Tokenizer) -> MakeShards:
    def make(documents: Sequence[str | TextOf], name: str = "shards", **options: object) -> TokenShards:
        made = [TextOf(d) if isinstance(d, str) else d for d in documents]
        write_shards(made, tokenizer, tmp_path / name, **options)  # type: ignore[arg-type]
        return TokenShards(tmp_path / name, tokenizer)

    return make


@pytest.fixture(scope="session")
def adversarial() -> list[str]:
    """Texts on which re-merging within a fixed distance of the cut fails, and their like."""
    return [
        "x" + " " * 301 + "y\n",
        "=" * 301,
        "9" * 300,
        "_" * 90 + "a_b" * 40,
        "')]\n\n    #######|####\n" * 5,
        "def __truediv__(self, other_value_name): pass\n" * 3,
        "\r\n".join(["a = 1", "", "\tb = 2  ", "   "] * 9),
        "\r\r\n\n\r \r\n \t\r" * 5,
        "naïve é 中文 🙂👩‍👩‍👧 \u00a0x\u3000y\u2028z don't I'LL it's 'S 'ſ\n" * 3,
        "e\u0301a\u0308\u0304 \u1680\u0085x\x0b\x0c " * 9,
        "中" * 90 + "文字\u3000" * 30,
        "🙂" * 60 + "👩‍👩‍👧‍👦" * 9,
        "a" * 400,
        " \n \n  \n\n\t\n" * 20,
        "(\n(\n((  \n ) 'sx 'll 1'll 're'Re'rE 'v'e\n" * 4,
        "one line without an end",
        "\n",
        " ",
        "x",
        "<|fim_prefix|>def<|fim_middle|><|endoftext|> <|fim_suffix|>\n",
        "\ufeff#!/usr/bin/env python\n\x00\x01\x7f",
    ]
