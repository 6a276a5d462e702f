"""`python -m mify.bench.tune_decode OUT.json`: the number of key splits that is fastest on this GPU, against what is
chosen.

Rows of the suite "kernels", cases "tune-decode-…": the metric is the time at the best number of splits, the rival the
number that `choose_splits` takes. Where the ratio is well above 1 the rule in kernels/attention/gqa_decode.py is to be
mended.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from mify.bench.rows import Row, write_results
from mify.bench.timing import Work, random_like_activations, time_gpu
from mify.kernels.attention.gqa_decode import MAX_SPLITS, SPLIT_UNIT, choose_splits, gqa_decode

# batch, keys: one wave of blocks, several, and none that needs a split.
SHAPES = ((1, 1024), (1, 8192), (1, 65_536), (4, 4096), (16, 4096), (64, 4096), (256, 1024))
HEADS = ((32, 8, 128), (20, 4, 128))


def candidates(batch: int, kv_heads: int, keys: int, processors: int) -> list[int]:
    """The chosen number of splits, powers of two, and what fills one and two waves of blocks exactly."""
    most = min(MAX_SPLITS, -(-keys // SPLIT_UNIT))
    waves = [wave * processors * 2 // (batch * kv_heads) for wave in (1, 2)]
    powers = [1 << i for i in range(8)]
    wanted = {choose_splits(batch, kv_heads, keys, processors), *powers, *waves}
    return sorted(splits for splits in wanted if 1 <= splits <= most)


def _cache(batch: int, keys: int, kv_heads: int, dim: int, seed: int) -> Tensor:
    return random_like_activations(batch, keys, kv_heads, dim, dtype=torch.bfloat16, device="cuda", seed=seed & 0xFFFF)


def _call(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, splits: int) -> Work:
    return lambda: gqa_decode(q, k, v, lengths, num_splits=splits, impl="cuda")


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m mify.bench.tune_decode OUT.json", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("no GPU: nothing to tune", file=sys.stderr)
        return 2
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    rows = []
    for heads, kv_heads, dim in HEADS:
        for batch, keys in SHAPES:
            q = random_like_activations(batch, heads, dim, dtype=torch.bfloat16, device="cuda")
            copies = max(1, min(32, (1 << 28) // (batch * keys * kv_heads * dim * 4)))
            caches = [
                (_cache(batch, keys, kv_heads, dim, n), _cache(batch, keys, kv_heads, dim, ~n)) for n in range(copies)
            ]
            lengths = torch.full((batch,), keys, dtype=torch.int32, device="cuda")
            chosen = choose_splits(batch, kv_heads, keys, processors)
            works = {
                str(splits): [_call(q, k, v, lengths, splits) for k, v in caches]
                for splits in candidates(batch, kv_heads, keys, processors)
            }
            times = time_gpu(works, rounds=15, flush_l2=copies == 1)
            best = min(times, key=lambda splits: times[splits].median)
            rows.append(
                Row.measured(
                    "kernels",
                    f"tune-decode-b{batch}-{keys}-{heads}-{kv_heads}",
                    f"{best} splits",
                    "time",
                    times[best].median * 1e6,
                    "us",
                    rival=f"{chosen} splits, chosen",
                    rival_value=times[str(chosen)].median * 1e6,
                    repro="python -m mify.bench.tune_decode OUT.json",
                    note=", ".join(f"{splits}: {timing.median * 1e6:.2f}" for splits, timing in times.items()),
                )
            )
            print(rows[-1].case, rows[-1].impl, f"{rows[-1].value:.2f} us,", rows[-1].note, flush=True)
    write_results(arguments[0], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
