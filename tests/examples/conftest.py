"""Shards for the examples, and the examples as modules."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from mify.data.shards import write_shards
from mify.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Text:
    text: str
    domain: str
    language: str = "python"

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.domain} {self.text}".encode()).hexdigest()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float]]:
    """Name -> (folder, weight), of this Python's own modules."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))[:40]
    texts = [file.read_text(encoding="utf-8")[:3000] for file in files]
    tokenizer = train_tokenizer(texts, 640)
    folder = tmp_path_factory.mktemp("examples")
    for domain in ("code", "text"):
        write_shards([Text(text, domain) for text in texts], tokenizer, folder / domain)
    return {"code": (str(folder / "code"), 0.8), "text": (str(folder / "text"), 0.2)}


@pytest.fixture(scope="session")
def example(checkout: Path) -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", checkout / "examples" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
