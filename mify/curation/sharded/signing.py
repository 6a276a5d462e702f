"""The fourth step: the documents of a partition that are still in are signed, and sorted by every band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mify._core import minhash as core
from mify.curation.sharded.partitions import codes_of, losers_of, read_column, rows_of
from mify.curation.signatures import SignatureConfig, as_texts, core_config

SURVIVORS, SIGNATURES, RUNS = "survivors.npy", "signatures.npy", "runs.npy"
RUN = np.dtype([("key", "<u8"), ("document", "<u8")])
# Texts signed between two looks at anything else.
_CHUNK = 65536


def sign(
    folder: Path,
    *,
    partition: int,
    signature: Mapping[str, Any],
    bands: Sequence[int],
    gathered: str,
    exact: Sequence[str],
) -> dict[str, Any]:
    """Task: the codes of a partition's survivors, sorted; their signatures; and for each band its run.

    Args:
        signature: the fields of a `SignatureConfig`.
        bands: (bands, rows).
        gathered: the folder of the partition.
        exact: the folders of the exact duplicates.
    """
    config = SignatureConfig(**signature)
    codes = survivors_of(partition, gathered, exact)
    np.save(folder / SURVIVORS, codes)
    texts = as_texts(read_column(gathered, "text")).take(rows_of(codes))
    settings = core_config(config)
    values = np.lib.format.open_memmap(
        folder / SIGNATURES, mode="w+", dtype=config.dtype, shape=(len(codes), config.num_perm)
    )
    num_shingles, invalid_bytes = np.empty((2, len(codes)), np.uint64)
    for begin in range(0, len(codes), _CHUNK):
        part = slice(begin, min(begin + _CHUNK, len(codes)))
        chunk = texts.take(np.arange(part.start, part.stop, dtype=np.int64))
        core.sign(chunk, settings, 1, values[part], num_shingles[part], invalid_bytes[part])
    values.flush()
    runs = core.band_runs(np.asarray(values), num_shingles, codes, bands[0], bands[1], 1)
    np.save(folder / RUNS, runs.view(RUN)[:, :, 0])
    held_out = int(np.searchsorted(codes, np.uint64(1 << 63)))
    return {
        "documents": len(codes),
        "held_out": held_out,
        "entries": runs.shape[1],
        "documents_with_invalid_utf8": int(np.count_nonzero(invalid_bytes)),
    }


def survivors_of(partition: int, gathered: str, exact: Sequence[str]) -> NDArray[np.uint64]:
    """The codes, sorted, of documents that are neither exact duplicates nor hold a benchmark's text."""
    codes = codes_of(read_column(gathered, "held_out").to_numpy(), partition)
    clean = read_column(gathered, "overlap").is_null().to_numpy()
    return np.setdiff1d(codes[clean], losers_of(partition, exact)["removed"])
