"""Evaluation in the loop: held-out bits per byte by domain, and infilling of held-out lines."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mify.data.batch import IGNORE_LABEL, PackedBatch
from mify.errors import MifyError

from .config import EvaluationSection

if TYPE_CHECKING:
    from mify.curation.documents import Document
    from mify.eval.tasks import Item, Task
    from mify.model import Model


class HeldOut:
    """Held-out documents by domain (in their stored order until the domain has its bytes), and lines to infill."""

    def __init__(self, documents: Iterable[Document], *, max_bytes_per_domain: int, infilling: int = 0) -> None:
        self.documents: dict[str, list[Document]] = {}
        sizes: dict[str, int] = {}
        chosen = []
        for document in documents:
            size = len(document.text.encode())
            if size and sizes.get(document.domain, 0) + size <= max_bytes_per_domain:
                self.documents.setdefault(document.domain, []).append(document)
                sizes[document.domain] = sizes.get(document.domain, 0) + size
                chosen.append(document)
        self.documents = dict(sorted(self.documents.items()))
        self.lines: Task | None = None
        if infilling:
            from mify.eval.infilling import held_out_lines

            self.lines = held_out_lines(chosen, lines=infilling)

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the documents and lines that are measured."""
        names = [f"{domain}:{document.id}" for domain, group in self.documents.items() for document in group]
        names += [item.id for item in self.lines.items] if self.lines else []
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    @staticmethod
    def load(config: EvaluationSection) -> HeldOut:
        """Reads `config.held_out`. Raises `MifyError` when it is absent, or nothing in it is short enough."""
        from mify.curation.documents import read_documents

        assert config.held_out is not None
        if not Path(config.held_out).exists():
            raise MifyError(f"evaluation.held_out {config.held_out} does not exist", "check the path, or curate first")
        held_out = HeldOut(
            read_documents(config.held_out),
            max_bytes_per_domain=config.max_bytes_per_domain,
            infilling=config.infilling,
        )
        if not held_out.documents:
            raise MifyError(
                f"no document of {config.held_out} is shorter than {config.max_bytes_per_domain} bytes",
                "raise --evaluation.max_bytes_per_domain",
            )
        return held_out

    def bits_per_byte(self, model: Model) -> dict[str, float]:
        """{domain: bits per UTF-8 byte}. The model's mode is left as it was."""
        from mify.eval.bits_per_byte import bits_per_byte

        with evaluating(model):
            return {
                domain: float(bits_per_byte(model, [document.text for document in documents]))
                for domain, documents in self.documents.items()
            }

    def document_bits(self, model: Model) -> dict[str, list[tuple[str, int, float]]]:
        """{domain: (id, UTF-8 bytes, bits) of each document}: what paired comparisons are made of."""
        from mify.eval.bits_per_byte import bits_per_byte

        found: dict[str, list[tuple[str, int, float]]] = {}
        with evaluating(model):
            for domain, documents in self.documents.items():
                rows = found.setdefault(domain, [])
                for document in documents:
                    size = len(document.text.encode())
                    rows.append((document.id[:16], size, bits_per_byte(model, [document.text]) * size))
        return found

    def infilling_bits(self, model: Model) -> list[tuple[str, int, float]]:
        """(id, bytes, bits) of each line's middle and its end token, given what stands before and behind (PSM)."""
        if self.lines is None:
            return []
        with evaluating(model), torch.no_grad():
            return [_middle_bits(model, item) for item in self.lines.items]

    def infilling_exact(self, model: Model) -> dict[str, bool]:
        """{id: whether the greedy answer is the line}."""
        from mify.eval.completers import MifyCompleter, Prompt

        if self.lines is None:
            return {}
        task, right = self.lines, dict[str, bool]()
        items = {item.id: item for item in task.items}

        def judge(prompt: Prompt, text: str | None, facts: dict[str, object]) -> None:
            item = items[str(prompt.key[0])]
            assert task.exact is not None
            right[item.id] = text is not None and task.exact(item, task.answer(item, text))

        prompts = []
        for item in task.items:
            prefix, suffix = task.prompt(item)
            prompts.append(Prompt((item.id, 0), prefix, suffix))
        with evaluating(model):
            MifyCompleter(model, "in training").complete(prompts, task.sampling, frozenset(), judge)
        return dict(sorted(right.items()))


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """The model in evaluation mode, and back."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _middle_bits(model: Model, item: Item) -> tuple[str, int, float]:
    tokenizer = model.require_tokenizer()
    middle = item.fields["middle"]
    answer = [*tokenizer.encode(middle), *([tokenizer.eot_id] if tokenizer.eot_id is not None else [])]
    room = model.config.context - len(answer)
    characters = 8 * model.config.context
    prompt = tokenizer.encode_fim(item.fields["prefix"], item.fields["suffix"])
    while len(prompt) > room:  # leave out the far ends, two thirds of the room for what stands before
        characters = characters * 4 // 5
        prompt = tokenizer.encode_fim(item.fields["prefix"][-characters:], item.fields["suffix"][: characters // 2])
    batch = one_document([*prompt, *answer], first_label=len(prompt), context=model.config.context)
    loss, _ = model.loss(batch.to(next(model.parameters()).device))
    return item.id, len(middle.encode()), float(loss) / math.log(2)


def one_document(ids: Sequence[int], *, first_label: int, context: int) -> PackedBatch:
    """A batch of one document whose loss is on the tokens from index `first_label` on."""
    labels = [token if index >= first_label else IGNORE_LABEL for index, token in enumerate(ids)][1:]
    return PackedBatch(
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor([*labels, IGNORE_LABEL], dtype=torch.int64),
        torch.arange(len(ids)),
        torch.tensor([0, len(ids)], dtype=torch.int32),
        context,
    )
