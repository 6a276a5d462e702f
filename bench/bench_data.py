"""`mify bench data`: tokens, FIM, packing and the stream against their rivals, on one core.

Every figure of speed is CPU time, the minimum of interleaved rounds, on whole files of this machine's Python
installation; tokens/s are tokens of the stream, not only of what was permuted.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mify.bench import data_passes
from mify.bench import data_rivals as rivals
from mify.bench.data_corpus import Corpus
from mify.bench.data_inputs import CONTEXT, SENTINELS, Bench
from mify.bench.rows import Row
from mify.bench.suite import Options
from mify.bench.timing import time_cpu
from mify.data.fim import FimConfig
from mify.data.plan import PlanConfig, plan_window
from mify.data.rows import make_rows
from mify.data.shards import TokenShards, write_shards
from mify.tokenizer import train_tokenizer

CASES = {
    "train-bpe": "training a tokenizer: the same merges as `tokenizers`, less time",
    "encode": "text to ids, equal to `tokenizers` on every document",
    "compression": "bytes a token, by domain, on files that the tokenizer was not trained on",
    "plan-fim-25": "the plan of a window: character-level FIM at 25%, exact lengths, bins of 8,192",
    "fim-exact": "random and adversarial cuts whose ids equal encoding the three pieces",
    "fim-whole": "middles that lose their end, tokens that are dropped, fragments kept plain for want of room",
    "pack-index": "best-fit decreasing over the pieces of a window, bins of 8,192",
    "rows-8k": "the host pass from a plan to packed rows, uint16",
    "rows-memory": "what the pass takes beside its output",
    "random-access": "documents in shuffled order through the memory map, cold, against a sequential read",
    "host-pass": "rows widened to a batch on the host: int64 tokens, labels, positions, cu_seqlens",
    "device-pass": "the same on a GPU, and gathered there from resident tokens, against a copy in its memory",
    "mixture": "78:12:10 by trained tokens",
    "resume": "state of the stream, and the time to the next batch from it",
}


def run(options: Options) -> list[Row]:
    """Every selected case."""
    with tempfile.TemporaryDirectory(prefix="mify-bench-data-") as folder:
        bench = Bench(options, Path(folder))
        for case in CASES:
            if options.selected(case):
                options.say(f"measuring {case}")
                _CASES[case](bench, case)
        return bench.rows


def _train_bpe(bench: Bench, case: str) -> None:
    texts, size = bench.sample.texts, bench.vocab_size // 4
    works: dict[str, Callable[[], object]] = {
        "mify": lambda: train_tokenizer(texts, size),
        "tokenizers": lambda: rivals.train_with_tokenizers(texts, size),
    }
    if rivals.installed("rustbpe"):
        works["rustbpe"] = lambda: rivals.train_with_rustbpe(texts, size)
    rounds = min(2, bench.options.rounds)
    timings = time_cpu(works, rounds=rounds, warmup=0)
    ours, theirs = train_tokenizer(texts, size), rivals.train_with_tokenizers(texts, size)
    equal = ours.definition["model"]["merges"] == theirs["model"]["merges"]
    note = f"{size:,} ids from {bench.sample.name}; merges {'equal' if equal else 'NOT equal'} to tokenizers'"
    seconds = {name: timing.best for name, timing in timings.items()}
    bench.against(case, "time", "s", seconds, ("tokenizers", "rustbpe"), note)
    bench.row(case, "merges equal", 100.0 * equal, "%")


def _encode(bench: Bench, case: str) -> None:
    tokenizer, texts = bench.tokenizer, bench.sample.texts
    encoders: dict[str, Any] = {"tokenizers": rivals.tokenizers_encoder(tokenizer)}
    works: dict[str, Callable[[], object]] = {
        "mify": lambda: tokenizer.encode_arrays(texts),
        "tokenizers": lambda: encoders["tokenizers"].encode_batch_fast(texts, add_special_tokens=False),
    }
    if rivals.installed("tiktoken"):
        encoders["tiktoken"] = rivals.tiktoken_encoder(tokenizer)
        works["tiktoken"] = lambda: [encoders["tiktoken"].encode_ordinary(text) for text in texts]
    if rivals.installed("gigatoken"):
        works["gigatoken"] = lambda: encoders["gigatoken"].encode_batch(texts, parallel=False)

    def renew() -> None:
        # gigatoken remembers every word it has seen; a corpus is read once.
        if "gigatoken" in works:
            encoders["gigatoken"] = rivals.gigatoken_encoder(tokenizer)

    timings = time_cpu(works, rounds=bench.options.rounds, warmup=0, setup=renew)
    speeds = {name: bench.sample.num_bytes / 1e6 / timing.best for name, timing in timings.items()}
    bench.against(case, "throughput", "MB/s", speeds, ("tokenizers", "tiktoken", "gigatoken"), bench.sample.name)
    ours = tokenizer.encode_batch(texts)
    found = {"tokenizers": [e.ids for e in encoders["tokenizers"].encode_batch_fast(texts, add_special_tokens=False)]}
    if "tiktoken" in encoders:
        found["tiktoken"] = [encoders["tiktoken"].encode_ordinary(text) for text in texts]
    if "gigatoken" in encoders:
        found["gigatoken"] = [list(ids) for ids in encoders["gigatoken"].encode_batch(texts, parallel=False).to_list()]
    for name, theirs in found.items():
        equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
        bench.row(case, f"documents equal to {name}", 100.0 * equal / len(texts), "%", note=f"{equal} of {len(texts)}")


def _compression(bench: Bench, case: str) -> None:
    """Trained on the first four fifths of the files, measured on the rest."""
    documents = bench.corpus.documents
    cut = len(documents) * 4 // 5
    tokenizer = train_tokenizer([document.text for document in documents[:cut]], bench.vocab_size)
    held_out = Corpus(documents[cut:])
    vocabularies = {"mify": lambda texts: len(tokenizer.encode_arrays(texts)[0]), **rivals.known_vocabularies()}
    for domain in ("code", "text", "math"):
        part = held_out.of(domain).sample(4_000_000)
        if not part.documents:
            bench.missing(case, f"{domain}, bytes a token", "B/token", f"no held-out files of {domain}")
            continue
        values = {name: part.num_bytes / count(part.texts) for name, count in vocabularies.items()}
        note = f"{tokenizer.vocab_size:,} ids; {part.name}"
        bench.against(case, f"{domain}, bytes a token", "B/token", values, tuple(list(values)[1:]), note)


def _plan(bench: Bench, case: str) -> None:
    tokenizer, shards = bench.tokenizer, bench.shards
    plan = bench.plan(0.25)
    works: dict[str, Callable[[], object]] = {"mify": lambda: bench.plan(0.25)}
    tokens = {"mify": float(plan.counts.source_tokens)}
    generator = np.random.default_rng(1)
    some = [shards.document(int(i))[:-1] for i in generator.permutation(shards.num_documents)[:400]]
    some = [ids for ids in some if 0 < len(ids) <= 100_000]
    if rivals.installed("tiktoken"):
        tik = rivals.tiktoken_encoder(tokenizer)
        works["tiktoken"] = lambda: rivals.fim_by_retokenizing(some, 0.25, tik.decode, tik.encode_ordinary, SENTINELS)
    slow = rivals.tokenizers_encoder(tokenizer)
    few = some[:60]
    works["tokenizers"] = lambda: rivals.fim_by_retokenizing(
        few, 0.25, slow.decode, lambda text: list(slow.encode(text, add_special_tokens=False).ids), SENTINELS
    )
    works["token-level numpy"] = lambda: rivals.fim_of_tokens(some, 0.25, SENTINELS)
    tokens |= {"tokenizers": float(sum(map(len, few)))}
    tokens |= dict.fromkeys(("tiktoken", "token-level numpy"), float(sum(map(len, some))))
    timings = time_cpu(works, rounds=bench.options.rounds)
    speeds = {name: tokens[name] / 1e6 / timing.best for name, timing in timings.items()}
    permuted = plan.counts.psm + plan.counts.spm
    note = f"{len(bench.window):,} documents, {permuted:,} fragments permuted; {bench.corpus.name}"
    bench.against(case, "throughput", "Mtok/s", speeds, ("tiktoken", "tokenizers", "token-level numpy"), note)
    counts = plan.counts
    bench.row(case, "fill", 100.0 * counts.tokens / (counts.bins * CONTEXT), "%", note=f"{counts.bins:,} bins")


def _fim_exact(bench: Bench, case: str) -> None:
    """Documents of at most 2 KB, every one permuted anew each epoch; two cuts a document."""
    tokenizer = bench.tokenizer
    generator = random.Random(bench.options.seed)
    texts = list(rivals.ADVERSARIAL)
    for text in bench.sample.texts:
        start = generator.randrange(len(text))
        texts.append(text[start : start + generator.randrange(1, 2000)])
    texts = list(dict.fromkeys(text for text in texts if text))
    documents = [rivals.Document(text) for text in texts]
    write_shards(documents, tokenizer, bench.folder / "exact")
    shards = TokenShards(bench.folder / "exact", tokenizer)
    wanted = 20_000 if bench.options.quick else 1_000_000
    checked = differ = 0
    for epoch in range(-(-wanted // (2 * len(texts)))):
        config = PlanConfig(CONTEXT, bench.options.seed, FimConfig(1.0))
        plan = plan_window(shards, tokenizer, range(len(texts)), config, epoch, 0)
        wrong = rivals.wrong_pieces(plan, shards, tokenizer, texts, CONTEXT)
        checked += 2 * len(plan.piece_mode)
        differ += wrong
    note = (
        f"{differ} of {checked:,} cuts differ; {len(texts):,} documents, {len(rivals.ADVERSARIAL)} of them adversarial"
    )
    bench.row(case, "cuts equal", 100.0 * (checked - differ) / checked, "%", note=note)


def _fim_whole(bench: Bench, case: str) -> None:
    plan = bench.plan(1.0)
    counts = plan.counts
    rows = make_rows(plan, range(plan.num_bins), bench.shards, context=CONTEXT, pad_id=1, sentinels=SENTINELS)
    cut = middles = 0
    for row in range(len(rows.tokens)):
        starts = rows.segment_starts[rows.row_starts[row] : rows.row_starts[row + 1]].tolist()
        for start, end in zip(starts, [*starts[1:], CONTEXT], strict=True):
            piece = rows.tokens[row, start:end]
            if (piece == SENTINELS[1]).any():
                middles += 1
                cut += int(piece[-1] != 0)
    sources = int(sum(np.diff(bench.shards.offsets)[bench.window]))
    bench.row(case, "middles without their end", float(cut), "middles", note=f"of {middles:,}, FIM at 100%")
    dropped = float(sources - counts.source_tokens) + float(counts.tokens - int(rows.used.sum()))
    bench.row(case, "tokens dropped", dropped, "tokens", note=f"of {sources:,}")
    plain = counts.plain_no_room + counts.plain_no_boundary
    note = (
        f"{counts.plain_no_room} without room, {counts.plain_no_boundary} without a boundary, of {counts.fragments:,}"
    )
    bench.row(case, "kept in plain order", 100.0 * plain / counts.fragments, "%", note=note)


def _pack_index(bench: Bench, case: str) -> None:
    from mify._core import packing

    plan = bench.plan(0.25)
    lengths = np.add.reduceat(plan.span_length, plan.span_starts[:-1]).astype(np.int32)
    lengths = np.random.default_rng(0).permutation(lengths)
    config = PlanConfig(CONTEXT, 0)
    works: dict[str, Callable[[], object]] = {
        "mify": lambda: packing.best_fit_decreasing(lengths, CONTEXT, config.segments)
    }
    if rivals.installed("lightbinpack"):
        import lightbinpack

        listed = lengths.tolist()
        works["lightbinpack"] = lambda: lightbinpack.obfd(listed, CONTEXT)
    timings = time_cpu(works, rounds=bench.options.rounds)
    speeds = {name: len(lengths) / 1e6 / timing.best for name, timing in timings.items()}
    bench.against(case, "throughput", "Mpieces/s", speeds, ("lightbinpack",), f"{len(lengths):,} pieces")
    starts, _ = packing.best_fit_decreasing(lengths, CONTEXT, config.segments)
    fill = 100.0 * float(lengths.sum()) / ((len(starts) - 1) * CONTEXT)
    bench.row(case, "fill", fill, "%", note=f"at most {config.segments} pieces a bin")


def _rows(bench: Bench, case: str) -> None:
    plan, shards = bench.plan(0.25), bench.shards
    chunk = 64
    groups = [np.arange(low, min(low + chunk, plan.num_bins)) for low in range(0, plan.num_bins, chunk)]

    def ours() -> None:
        for bins in groups:
            make_rows(plan, bins, shards, context=CONTEXT, pad_id=1, sentinels=SENTINELS)

    flat = np.concatenate([np.asarray(tokens) for tokens in shards.tokens])
    works: dict[str, Callable[[], object]] = {
        "mify": ours,
        "concatenate and chunk, numpy": lambda: rivals.concatenate_and_chunk(flat, CONTEXT),
    }
    timings = time_cpu(works, rounds=bench.options.rounds)
    tokens = {"mify": plan.counts.tokens, "concatenate and chunk, numpy": len(flat)}
    speeds = {name: tokens[name] / 1e6 / timing.best for name, timing in timings.items()}
    note = f"{plan.counts.tokens / 1e6:.0f} M tokens, {chunk} rows a call; the rival cuts documents and writes int64"
    bench.against(case, "throughput", "Mtok/s", speeds, ("concatenate and chunk, numpy",), note)


def _rows_memory(bench: Bench, case: str) -> None:
    plan, shards = bench.plan(0.25), bench.shards
    if not os.access("/proc/self/clear_refs", os.W_OK):
        bench.missing(case, "memory beside the output", "MiB", "this system does not tell a process its peak memory")
        return
    for tokens in shards.tokens:
        int(tokens.sum())  # the map's pages are the input, and resident before
    bins = range(plan.num_bins)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    rows = make_rows(plan, bins, shards, context=CONTEXT, pad_id=1, sentinels=SENTINELS)
    peak = _status("VmHWM")
    output = sum(
        array.nbytes for array in (rows.tokens, rows.loss_bits, rows.segment_starts, rows.row_starts, rows.used)
    )
    extra = max(0.0, (peak - before) * 1024 - output) / 2**20
    bench.row(case, "memory beside the output", extra, "MiB", note=f"output {output / 2**20:.0f} MiB")


def _status(name: str) -> int:
    """A field of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def _random_access(bench: Bench, case: str) -> None:
    shards = bench.shards
    paths = sorted(shards.folder.glob("shard-*/tokens.bin"))
    order = np.random.default_rng(0).permutation(shards.num_documents)

    def evict() -> None:
        for path in paths:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read(indices: NDArray[np.int64]) -> float:
        fresh = TokenShards(shards.folder, verify=False)
        evict()
        start = time.perf_counter()
        for index in indices:
            np.array(fresh.document(int(index)))
        return shards.num_tokens * 2 / 1e6 / (time.perf_counter() - start)

    if not hasattr(os, "posix_fadvise"):
        bench.missing(case, "shuffled", "MB/s", "this system cannot empty its page cache for a file")
        return
    rounds = max(2, bench.options.rounds // 2)
    shuffled = max(read(order) for _ in range(rounds))
    sequential = max(read(np.arange(shards.num_documents)) for _ in range(rounds))
    note = f"{shards.num_documents:,} documents, wall time, page cache emptied before each round"
    bench.row(case, "shuffled", shuffled, "MB/s", rival="in order", rival_value=sequential, note=note)


def _mixture(bench: Bench, case: str) -> None:
    from mify.data.stream import Source, TokenStream

    domains, weights = [], {"code": 78.0, "text": 12.0, "math": 10.0}
    for name in weights:
        part = bench.sample.of(name)
        if part.documents:
            write_shards(part.documents, bench.tokenizer, bench.folder / name)
            domains.append(name)
    stream = TokenStream(
        [Source(name, bench.folder / name, weights[name]) for name in domains],
        context=2048,
        rows_per_step=64,
        seed=bench.options.seed,
        fim=FimConfig(0.25),
    )
    stream.seek(200)
    ledger = stream.ledger()
    total = sum(entry["tokens"] for entry in ledger.values())
    whole = sum(weights[name] for name in domains)
    worst = max(abs(entry["tokens"] - total * weights[name] / whole) for name, entry in ledger.items())
    allowed = max(0.001 * total, stream.context)
    epochs = ", ".join(f"{name} {entry['epochs']:.2f} epochs" for name, entry in ledger.items())
    note = f"{worst:.0f} of {total / 1e6:.1f} M tokens; {epochs}"
    bench.row(case, "error over what is allowed", 100.0 * worst / allowed, "% allowed", note=note)


def _resume(bench: Bench, case: str) -> None:
    import json

    from mify.data.stream import Source, TokenStream

    def open_stream() -> TokenStream:
        _ = bench.shards
        source = Source("all", bench.folder / "shards", 1.0)
        return TokenStream(
            [source],
            context=CONTEXT,
            rows_per_step=8,
            seed=1,
            fim=FimConfig(0.25),
            tokenizer=bench.tokenizer,
            verify=False,
        )

    stream = open_stream()
    batches = iter(stream)
    for _ in range(20):
        next(batches)
    state = stream.state_dict()
    expected = next(batches)
    bench.row(case, "state", float(len(json.dumps(state))), "B", note="as JSON, one source")
    start = time.perf_counter()
    resumed = open_stream()
    resumed.load_state_dict(state)
    got = next(iter(resumed))
    seconds = time.perf_counter() - start
    equal = bool((got.tokens == expected.tokens).all() and (got.labels == expected.labels).all())
    bench.row(case, "time to the next batch", seconds, "s", note=f"{bench.shards.num_tokens / 1e6:.0f} M tokens; wall")
    bench.row(case, "next batch equal", 100.0 * equal, "%")


_CASES: dict[str, Callable[[Bench, str], None]] = {
    "train-bpe": _train_bpe,
    "encode": _encode,
    "compression": _compression,
    "plan-fim-25": _plan,
    "fim-exact": _fim_exact,
    "fim-whole": _fim_whole,
    "pack-index": _pack_index,
    "rows-8k": _rows,
    "rows-memory": _rows_memory,
    "random-access": _random_access,
    "host-pass": data_passes.host_pass,
    "device-pass": data_passes.device_pass,
    "mixture": _mixture,
    "resume": _resume,
}
