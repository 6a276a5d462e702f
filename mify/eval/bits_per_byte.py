"""Held-out bits per byte: how well a model predicts text it has not seen, comparable across vocabularies.

The figure is a code length that a decoder could invert: -log2 p of every token given the tokens before it in the same
document, and log2(vocabulary size) for a document's first token, which nothing stands before (training never predicts
it), divided by the document's UTF-8 bytes. Where a document is longer than the context it is read in windows that
overlap by half, and each token is counted once, in the window that gives it more context: at least half the model's.

Baselines, on the same documents: `ByteNgram` trained on the training corpus, and xz with and without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.curation.documents import Document
    from mify.data.batch import PackedBatch
    from mify.model import Model

Progress = Callable[[str, int, int], None]


def bits_per_byte(
    model: Model,
    texts: Sequence[str],
    *,
    rows_per_batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Bits per UTF-8 byte of `texts` under the model.

    Args:
        texts: whole documents. rows_per_batch: windows of `context` tokens in one forward pass.
        progress: progress(windows done, windows).

    Raises:
        MifyError: the texts have no bytes.
    """
    import torch

    num_bytes = sum(len(text.encode("utf-8")) for text in texts)
    if num_bytes == 0:
        raise MifyError("there is no held-out text to measure", "give documents that are not empty")
    tokenizer = model.require_tokenizer()
    documents = [ids for ids in tokenizer.encode_batch(list(texts)) if ids]
    bits = len(documents) * math.log2(model.config.vocab_size)
    all_windows = [window for ids in documents for window in windows(ids, model.config.context)]
    batches = list(_batches(all_windows, model.config.context, rows_per_batch))
    device = model.head_weight.device
    nats = 0.0
    done = 0
    with torch.inference_mode():
        for batch, count in batches:
            loss, _ = model.loss(batch.to(device))
            nats += float(loss)
            done += count
            if progress is not None:
                progress(done, len(all_windows))
    return (bits + nats / math.log(2)) / num_bytes


def windows(ids: Sequence[int], context: int) -> Iterator[tuple[Sequence[int], int]]:
    """(tokens, first) of each window: the tokens from index `first` on are counted there; together, all but the first.

    Windows start every context // 2 tokens.
    """
    stride = max(1, context // 2)
    counted = 1
    start = 0
    while counted < len(ids):
        end = min(start + context, len(ids))
        yield ids[start:end], counted - start
        counted = end
        start = end - (context - stride)


def _batches(
    all_windows: Sequence[tuple[Sequence[int], int]], context: int, rows: int
) -> Iterator[tuple[PackedBatch, int]]:
    """Packs windows, longest first, into batches of at most rows * context tokens."""
    import torch

    from mify.data.batch import IGNORE_LABEL, PackedBatch

    budget = rows * context
    order = sorted(range(len(all_windows)), key=lambda index: (-len(all_windows[index][0]), index))
    position = 0
    while position < len(order):
        tokens: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        bounds = [0]
        while position < len(order) and len(tokens) + len(all_windows[order[position]][0]) <= budget:
            ids, first = all_windows[order[position]]
            tokens += ids
            labels += [ids[i + 1] if i + 1 >= first else IGNORE_LABEL for i in range(len(ids) - 1)] + [IGNORE_LABEL]
            positions += range(len(ids))
            bounds.append(len(tokens))
            position += 1
        yield (
            PackedBatch(
                torch.tensor(tokens, dtype=torch.int64),
                torch.tensor(labels, dtype=torch.int64),
                torch.tensor(positions, dtype=torch.int64),
                torch.tensor(bounds, dtype=torch.int32),
                context,
            ),
            len(bounds) - 1,
        )


def evaluate_bits_per_byte(
    model: Model,
    held_out: Iterable[Document],
    training: Iterable[Document] = (),
    *,
    ngram_order: int = 6,
    baseline_bytes: int = 8_000_000,
    xz: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Bits per byte per domain and over all, of the model and of the baselines.

    Args:
        held_out: what to measure on. training: what the baselines learn from (none: no baselines with it).
        ngram_order: bytes an n-gram spans, the predicted one included.
        baseline_bytes: at most so many bytes of the training documents per domain, the first in order of id.

    Returns:
        {"domains": {domain: {"bytes", "documents", "model", "ngram", "xz", "xz_trained"}}, "all": {the same},
        "baselines": {…}}
    """
    from mify.eval.baselines import ByteNgram, training_bytes, xz_bits_per_byte

    by_domain: dict[str, list[str]] = {}
    for document in held_out:
        if document.text:
            by_domain.setdefault(document.domain, []).append(document.text)
    if not by_domain:
        raise MifyError("there is no held-out text to measure", "give documents that are not empty")
    corpus = training_bytes(training, baseline_bytes)
    steps = len(by_domain) * 2 + 1
    step = 0

    def say(what: str) -> None:
        nonlocal step
        if progress is not None:
            progress(f"bits per byte: {what}", step, steps)
        step += 1

    ngram = None
    if corpus:
        say(f"training the {ngram_order}-gram")
        ngram = ByteNgram(b"".join(corpus[domain] for domain in sorted(corpus)), ngram_order)
    domains: dict[str, dict[str, Any]] = {}
    for domain, texts in sorted(by_domain.items()):
        data = [text.encode("utf-8") for text in texts]
        say(f"model on {domain}")
        row: dict[str, Any] = {
            "bytes": sum(map(len, data)),
            "documents": len(texts),
            "model": bits_per_byte(model, texts),
        }
        say(f"baselines on {domain}")
        if ngram is not None:
            row["ngram"] = ngram.bits_per_byte(data)
        if xz:
            row["xz"] = xz_bits_per_byte(data)
            if corpus:
                row["xz_trained"] = xz_bits_per_byte(data, corpus.get(domain, b""))
        domains[domain] = row
    if progress is not None:
        progress("bits per byte", steps, steps)
    return {
        "format": "evaluation",
        "version": 1,
        "task": "bits_per_byte",
        "domains": domains,
        "all": _over_all(domains),
        "baselines": {
            "ngram": f"byte {ngram_order}-gram, interpolated (Witten-Bell), trained on the bytes below",
            "xz": "held-out documents of a domain as one stream, LZMA2 preset 9 extreme",
            "xz_trained": "what the held-out stream adds to a stream that begins with the training bytes of its domain",
            "training_bytes": {domain: len(data) for domain, data in sorted(corpus.items())},
        },
    }


def _over_all(domains: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The byte-weighted mean of every figure that all domains have."""
    total = sum(row["bytes"] for row in domains.values())
    names = set.intersection(*(set(row) for row in domains.values())) - {"bytes", "documents"}
    mean = {name: sum(row[name] * row["bytes"] for row in domains.values()) / total for name in sorted(names)}
    return {"bytes": total, "documents": sum(row["documents"] for row in domains.values()), **mean}
