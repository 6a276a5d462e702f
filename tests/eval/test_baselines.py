"""The n-gram against a plain dictionary, xz against Python's own."""

from __future__ import annotations

import lzma
import math
import random
from collections import Counter

import pytest

from mify.curation.documents import Document
from mify.eval.baselines import ByteNgram, training_bytes, xz_bits_per_byte


def plain_ngram_bits(training: bytes, document: bytes, order: int) -> float:
    """The same formula, counted in dictionaries."""
    counts = [Counter(training[i : i + n] for i in range(len(training) - n + 1)) for n in range(1, order + 1)]
    bits = 0.0
    for i in range(len(document)):
        p = 1 / 256
        for n in range(1, order + 1):
            if i < n - 1:
                break
            history = document[i - n + 1 : i]
            following = {gram[-1]: count for gram, count in counts[n - 1].items() if gram[:-1] == history}
            total, distinct = sum(following.values()), len(following)
            if total:
                p = (following.get(document[i], 0) + distinct * p) / (total + distinct)
        bits -= math.log2(p)
    return bits


@pytest.mark.parametrize("order", [1, 2, 3, 5, 7])
def test_ngram_equals_the_formula(order: int) -> None:
    generator = random.Random(order)
    training = bytes(generator.choices(b"abcd\n", k=400))
    documents = [bytes(generator.choices(b"abcde\xff", k=n)) for n in (1, 2, 30)]
    expected = sum(plain_ngram_bits(training, document, order) for document in documents) / 33
    assert ByteNgram(training, order).bits_per_byte(documents) == pytest.approx(expected, rel=1e-12)


def test_ngram_probabilities_sum_to_one() -> None:
    model = ByteNgram(b"the cat sat on the mat", 4)
    history = b"the"
    total = sum(
        2 ** -(model.bits_per_byte([history + bytes([c])]) * 4 - model.bits_per_byte([history]) * 3) for c in range(256)
    )
    assert total == pytest.approx(1.0, rel=1e-9)


def test_ngram_edges() -> None:
    assert ByteNgram(b"", 3).bits_per_byte([b"abc"]) == pytest.approx(8.0)
    assert ByteNgram(b"ab", 7).bits_per_byte([b""]) == 0.0
    with pytest.raises(ValueError, match="order is 8"):
        ByteNgram(b"a", 8)


def test_xz_counts_what_the_documents_add() -> None:
    generator = random.Random(0)
    noise = generator.randbytes(20_000)
    assert xz_bits_per_byte([noise]) == pytest.approx(8.0, abs=0.05)
    assert xz_bits_per_byte([noise], noise) < 0.2
    text = b"def f(x):\n    return x + 1\n" * 50
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 16}]
    assert xz_bits_per_byte([text]) == 8 * len(lzma.compress(text, lzma.FORMAT_RAW, filters=filters)) / len(text)
    with pytest.raises(ValueError, match="no bytes"):
        xz_bits_per_byte([])


def test_training_bytes_are_whole_documents_in_order_of_id() -> None:
    documents = [Document.create(f"text {n} é", "text", "markdown", "MIT", "s", "r", str(n)) for n in range(9)]
    taken = training_bytes(reversed(documents), 30)
    ordered = [document.text.encode() for document in sorted(documents, key=lambda document: document.id)]
    assert taken == {"text": b"".join(ordered[:3])}
