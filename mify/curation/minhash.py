"""Near-duplicates: MinHash signatures, banding, exact verification, and the greedy star that decides who goes.

Banding cuts a signature into b bands of r values. A pair of Jaccard similarity J agrees on one band with probability
J^r, so it becomes a candidate with probability 1 - (1 - J^r)^b. Candidates are then compared exactly, as sets of
shingle hashes. Documents are taken in the order of their ids: one that reaches the threshold with an earlier *kept*
document is removed, and the pair is its evidence. No document is removed by a chain of similar ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mify.curation.signatures import (
    Scheme,
    ShingleHash,
    SignatureConfig,
    Signatures,
    as_texts,
    core_config,
    from_datasketch,
    jaccard,
    signatures,
    to_datasketch,
)
from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.curation.signatures import TextSequence

__all__ = [
    "NearDuplicates",
    "SignatureConfig",
    "Signatures",
    "choose_bands",
    "collision_probability",
    "from_datasketch",
    "jaccard",
    "near_duplicates",
    "signatures",
    "to_datasketch",
]

# Signed between two calls of `progress`, and between two chances for Ctrl-C.
_CHUNK = 16384
# The chance that a pair at the threshold is put aside by its signature before it is compared exactly.
_PREFILTER_MISS = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class NearDuplicates:
    """What near-duplicate removal decided.

    Args:
        removed: (index, kept index, Jaccard similarity) of every removed text, by index; indices of the input.
        cluster_ids: (N,) int64: the first text, by id, of the group that pairs (removed, kept) at or above the
            threshold join. For information: it is never the reason of a removal.
        report: bands, rows, probabilities, counts: see `near_duplicates`.
    """

    removed: list[tuple[int, int, float]]
    cluster_ids: NDArray[np.int64]
    report: dict[str, Any]


def collision_probability(jaccard_similarity: float, num_bands: int, rows_per_band: int) -> float:
    """1 - (1 - J^r)^b: the chance that a pair of similarity J shares a bucket (independent permutations)."""
    return 1.0 - (1.0 - jaccard_similarity**rows_per_band) ** num_bands


def choose_bands(jaccard_threshold: float, num_perm: int, min_probability: float = 0.999) -> tuple[int, int]:
    """(bands, rows): the most rows a band, so the fewest chance candidates, that still find a pair at the threshold.

    A pair at exactly `jaccard_threshold` must share a bucket with probability >= `min_probability`: 32 x 4 at 128
    permutations and threshold 0.7 (0.99982), 51 x 5 at 255 (0.99992); 25 x 5 at 128 would give 0.990.

    Raises:
        MifyError: where not even one row a band is enough.
    """
    for rows in range(num_perm, 0, -1):
        bands = num_perm // rows
        if collision_probability(jaccard_threshold, bands, rows) >= min_probability:
            return bands, rows
    raise MifyError(
        f"{num_perm} permutations find a pair at Jaccard {jaccard_threshold} with probability below {min_probability}",
        "raise num_perm or the threshold",
    )


def min_matches(jaccard_threshold: float, num_perm: int, miss: float = _PREFILTER_MISS) -> int:
    """The most equal values c such that a pair at the threshold has fewer with probability <= `miss`.

    Equal values of a pair of similarity J are binomial(num_perm, J). Pairs with fewer are not compared exactly.
    """
    if jaccard_threshold >= 1.0:
        return num_perm
    below, log_odds = 0.0, math.log(jaccard_threshold) - math.log1p(-jaccard_threshold)
    log_term = num_perm * math.log1p(-jaccard_threshold)
    for count in range(num_perm + 1):
        below += math.exp(log_term)
        if below > miss:
            return count
        log_term += math.log((num_perm - count) / (count + 1)) + log_odds
    return num_perm


def near_duplicates(
    ids: Sequence[str],
    texts: TextSequence,
    *,
    jaccard_threshold: float = 0.7,
    num_perm: int = 128,
    ngram: int = 5,
    seed: int = 1,
    verify: bool = True,
    threads: int = 1,
    lowercase: bool = True,
    scheme: Scheme = "affine32",
    hash: ShingleHash = "fast64",
    min_probability: float = 0.999,
    bands: tuple[int, int] | None = None,
    bucket_cap: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> NearDuplicates:
    """Finds which texts to remove so that no two kept ones are near-duplicates (up to the recall of the bands).

    The result depends on the set of (id, text) and the parameters only: neither on the order of the input nor on
    `threads`. Texts without a word are never near-duplicates.

    Args:
        ids: unique names; their order decides who stays.
        texts: str or bytes (not necessarily UTF-8), or an Arrow array of them.
        jaccard_threshold: in (0, 1]; word n-grams of at least this Jaccard similarity are near-duplicates.
        num_perm, ngram, seed, lowercase, scheme, hash: see `SignatureConfig`.
        verify: compare candidates exactly. Without it the share of equal signature values decides: its standard error
            is sqrt(t (1 - t) / num_perm) (in the report), so pairs below the threshold go and pairs above it stay.
        min_probability: of finding a pair at exactly the threshold; chooses the bands.
        bands: (bands, rows) instead of chosen ones.
        bucket_cap: kept documents that a bucket lists. Later ones are compared with these only; the report estimates
            from a sample what that lost.
        progress: called with (texts signed, texts).

    Raises:
        MifyError: for duplicate ids, unequal lengths, or a parameter out of range.
    """
    if len(ids) != len(texts):
        raise MifyError(f"there are {len(ids)} ids for {len(texts)} texts", "pass one id a text")
    if not 0.0 < jaccard_threshold <= 1.0:
        raise MifyError(f"jaccard_threshold is {jaccard_threshold}", "use a number above 0 and at most 1")
    if bucket_cap < 1 or threads < 1:
        raise MifyError(f"bucket_cap is {bucket_cap}, threads {threads}", "use at least 1")
    config = SignatureConfig(num_perm, ngram, lowercase, scheme, hash, seed)
    num_bands, rows = bands or choose_bands(jaccard_threshold, num_perm, min_probability)
    if num_bands < 1 or rows < 1 or num_bands * rows > num_perm:
        raise MifyError(f"bands {(num_bands, rows)} do not fit {num_perm} permutations", "use bands * rows <= num_perm")
    order = _stable_order(ids)

    from mify._core import minhash as core

    ordered = as_texts(texts).take(order)
    core_settings = core_config(config)
    values = np.empty((len(order), num_perm), config.dtype)
    num_shingles = np.empty(len(order), np.uint64)
    invalid_bytes = np.empty(len(order), np.uint64)
    for begin in range(0, len(order), _CHUNK):
        chunk = ordered.take(np.arange(begin, min(begin + _CHUNK, len(order)), dtype=np.int64))
        part = slice(begin, begin + len(chunk))
        core.sign(chunk, core_settings, threads, values[part], num_shingles[part], invalid_bytes[part])
        if progress is not None:
            progress(part.stop, len(order))
    found = core.greedy_star(
        ordered,
        core_settings,
        values,
        num_shingles,
        num_bands=num_bands,
        rows_per_band=rows,
        threshold=jaccard_threshold,
        verify=verify,
        min_matches=prefilter(config, jaccard_threshold),
        bucket_cap=bucket_cap,
        seed=seed,
        threads=threads,
    )
    evidence = (order[found["removed"]], order[found["kept"]], found["jaccard"])
    by_index = np.argsort(evidence[0])
    removed = list(zip(*(column[by_index].tolist() for column in evidence), strict=True))
    cluster_ids = np.empty(len(order), np.int64)
    cluster_ids[order] = order[found["cluster_ids"]]
    found["removed"] = len(removed)
    found["documents"] = len(order)
    found["documents_without_words"] = int(np.count_nonzero(num_shingles == 0))
    found["documents_with_invalid_utf8"] = int(np.count_nonzero(invalid_bytes))
    sampled, lost = found.pop("sampled_pairs"), found.pop("sampled_lost")
    found["skipped_pairs_sampled"], found["skipped_pairs_sampled_lost"] = sampled, lost
    report = near_report(config, jaccard_threshold, (num_bands, rows), verify, bucket_cap, found)
    return NearDuplicates(removed, cluster_ids, report)


def prefilter(config: SignatureConfig, jaccard_threshold: float) -> int:
    """Equal signature values below which a pair is not compared exactly; see `min_matches`."""
    # The values of one-permutation signatures of short texts are not independent: no bound holds, so none is used.
    return 0 if config.scheme == "one_permutation" else min_matches(jaccard_threshold, config.num_perm)


def near_report(
    config: SignatureConfig,
    jaccard_threshold: float,
    bands: tuple[int, int],
    verify: bool,
    bucket_cap: int,
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """The parameters, the probabilities they mean, and what was counted."""
    sampled, lost = counts["skipped_pairs_sampled"], counts["skipped_pairs_sampled_lost"]
    return {
        "documents": counts["documents"],
        "documents_without_words": counts["documents_without_words"],
        "documents_with_invalid_utf8": counts["documents_with_invalid_utf8"],
        "removed": counts["removed"],
        "jaccard_threshold": jaccard_threshold,
        "num_perm": config.num_perm,
        "ngram": config.ngram,
        "seed": config.seed,
        "scheme": config.scheme,
        "hash": config.hash,
        "lowercase": config.lowercase,
        "bands": bands[0],
        "rows": bands[1],
        "probability_at_threshold": collision_probability(jaccard_threshold, *bands),
        "verified": verify,
        "estimate_standard_error": math.sqrt(jaccard_threshold * (1 - jaccard_threshold) / config.num_perm),
        "buckets": counts["buckets"],
        "candidate_pairs": counts["candidate_pairs"],
        "verified_pairs": counts["verified_pairs"],
        "bucket_cap": bucket_cap,
        "capped_buckets": counts["capped_buckets"],
        "skipped_pairs": counts["skipped_pairs"],
        "skipped_pairs_sampled": sampled,
        "skipped_pairs_sampled_lost": lost,
        "estimated_lost_pairs": counts["skipped_pairs"] * lost / sampled if sampled else 0.0,
    }


def _stable_order(ids: Sequence[str]) -> NDArray[np.int64]:
    """Indices by ascending id; a duplicate raises `MifyError` naming it."""
    order, repeated = as_texts(ids).ascending()
    if repeated >= 0:
        first, second = order[repeated : repeated + 2].tolist()
        raise MifyError(f"the id {ids[first]!r} occurs at {first} and {second}", "give every text an id of its own")
    return order
