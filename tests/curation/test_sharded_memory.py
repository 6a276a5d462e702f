"""What a million documents cost: the one step that holds something of every document."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Partitions of a million documents, three in ten with a candidate, as the steps before the star leave them.
SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
from mify.curation.sharded import pairing, signing, starring
from mify.curation.sharded.partitions import codes_of

folder, partitions, size = Path(sys.argv[1]), int(sys.argv[2]), 1_000_000
random = np.random.default_rng(1)
for partition in range(partitions):
    home = folder / str(partition)
    home.mkdir()
    codes = codes_of(np.zeros(size, bool), partition)
    np.save(home / signing.SURVIVORS, codes)
    later = np.sort(random.choice(np.arange(1000, size), 3 * size // 10, replace=False))
    pairs = np.empty(len(later), pairing.VERIFIED_PAIR)
    pairs["later"], pairs["earlier"] = codes[later], codes[(later * random.random(len(later))).astype(int)]
    pairs["jaccard"] = 0.8
    np.save(home / pairing.VERIFIED, pairs)
np.save(folder / pairing.CAPPED, np.empty(0, pairing.CAPPED_BUCKET))
homes = [str(folder / str(partition)) for partition in range(partitions)]
similarity = {"threshold": 0.7, "verify": True, "min_matches": 0}
found = starring.star(
    folder, counts=[[0, size]] * partitions, bucket_cap=256, signature={"seed": 1}, similarity=similarity,
    gathered=homes, signed=homes, paired=[str(folder)], verified=homes,
)
assert found["removed"] > partitions * size // 5
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_the_star_takes_some_sixteen_bytes_a_document(tmp_path: Path) -> None:
    peaks = []
    for partitions in (2, 6):
        folder = tmp_path / str(partitions)
        folder.mkdir()
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), str(partitions)], check=True, capture_output=True, text=True
        )
        peaks.append(int(run.stdout) * 1024)
    # 8 bytes and two bits, and the mapped files of survivors (8 bytes) while they are looked up.
    assert (peaks[1] - peaks[0]) / 4e6 < 20
