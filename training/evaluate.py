"""Evaluation in the loop: held-out bits per byte, by domain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mify.errors import MifyError

from .config import EvaluationSection

if TYPE_CHECKING:
    from mify.model import Model


class HeldOut:
    """Held-out texts by domain: the documents in their stored order until the domain has its bytes."""

    def __init__(self, texts: dict[str, list[str]]) -> None:
        self.texts = texts

    @staticmethod
    def load(config: EvaluationSection) -> HeldOut:
        """Reads `config.held_out`. Raises `MifyError` when it is absent or empty."""
        from mify.curation.documents import read_documents

        assert config.held_out is not None
        if not Path(config.held_out).exists():
            raise MifyError(f"evaluation.held_out {config.held_out} does not exist", "check the path, or curate first")
        texts: dict[str, list[str]] = {}
        sizes: dict[str, int] = {}
        for document in read_documents(Path(config.held_out)):
            size = len(document.text.encode())
            if sizes.get(document.domain, 0) + size <= config.max_bytes_per_domain:
                texts.setdefault(document.domain, []).append(document.text)
                sizes[document.domain] = sizes.get(document.domain, 0) + size
        if not texts:
            raise MifyError(
                f"no document of {config.held_out} is shorter than {config.max_bytes_per_domain} bytes",
                "raise --evaluation.max_bytes_per_domain",
            )
        return HeldOut(dict(sorted(texts.items())))

    def bits_per_byte(self, model: Model) -> dict[str, float]:
        """{domain: bits per UTF-8 byte}. The model's mode and gradients are left as they were."""
        from mify.eval.bits_per_byte import bits_per_byte

        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return {domain: float(bits_per_byte(model, texts)) for domain, texts in self.texts.items()}
        finally:
            model.train(training)
