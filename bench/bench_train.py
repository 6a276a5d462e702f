"""`mify bench train`: tokens/s against transformers' Trainer and litgpt, what the trainer adds, checkpoints, exactness.

On a CPU: mify-tiny, the same packed inputs, the same threads, none or all compiled, CPU time from step end to step end,
interleaved rounds. That all compute the same thing is checked: equal weights and batches must give equal losses.
On a GPU: mify-2.5b, bf16, 8k packed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from mify.bench import train_exactness, train_litgpt
from mify.bench import train_rivals as rivals
from mify.bench.rows import Row
from mify.bench.suite import Options
from mify.bench.train_sft import sft_step
from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.data.batch import PackedBatch
    from mify.training.config import TrainConfig

CASES = {
    "tiny-step": "mify-tiny on CPU threads: tokens/s of whole training steps, against transformers' Trainer and litgpt",
    "tiny-step-compiled": "the same, all compiled by torch.compile",
    "sft-step": "fine-tuning steps, one in five tokens with loss, 65,536 ids: tokens/s against TRL's SFTTrainer",
    "tiny-overhead": "what of a step is neither model nor optimizer, and what of it waits for data",
    "tiny-checkpoint": "the stall of a checkpoint of mify-tiny, as a share of a minute",
    "async-checkpoint": "how long an asynchronous save holds the loop, by the gigabyte",
    "resume": "bits that differ between a resumed run and an uninterrupted one",
    "ranks": "whether 1, 2 and 4 ranks see the same batches, and how far their losses lie apart (50 steps, fp32)",
    "2.5b-8k-bf16": "mify-2.5b on one GPU, 8k packed: tokens/s",
}
ROWS, CONTEXT = 8, 512
TRAINER, LITGPT = "transformers Trainer", "litgpt"
Measured = tuple[list[float], list[float]]
"""Seconds of each step but the first, and the losses of all."""


def run(options: Options) -> list[Row]:
    """Every selected case."""
    bench = Bench(options)
    for case, measure in _CASES.items():
        if options.selected(case):
            options.say(f"measuring {case}")
            measure(bench, case)
    return bench.rows


class Bench:
    """The rows so far, and the token shards, made when first needed."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.rows: list[Row] = []

    def row(self, case: str, metric: str, value: float, unit: str, **more: Any) -> None:
        target = self.options.targets.find("train", case, metric)
        repro = self.options.repro(case)
        self.rows.append(Row.measured("train", case, "mify", metric, value, unit, repro=repro, target=target, **more))

    def missing(self, case: str, metric: str, unit: str, why: str) -> None:
        target = self.options.targets.find("train", case, metric)
        repro = self.options.repro(case)
        self.rows.append(Row.not_measured("train", case, "mify", metric, unit, why=why, repro=repro, target=target))

    @cached_property
    def folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="mify-bench-train-")

    @cached_property
    def shards(self) -> Path:
        """Token shards of some of the standard library."""
        import sysconfig

        from mify.curation.documents import Document
        from mify.data.shards import write_shards
        from mify.tokenizer import train_tokenizer

        library = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(path for path in library.glob("*.py"))[: 60 if self.options.quick else 150]
        texts = {path.name: path.read_text(encoding="utf-8", errors="ignore") for path in files}
        documents = [
            Document.create(text, "code", "Python", "PSF-2.0", "stdlib", "cpython", name)
            for name, text in texts.items()
            if text
        ]
        out = Path(self.folder.name) / "tokens"
        write_shards(documents, train_tokenizer(texts.values(), 4096), out)
        return out

    def config(self, name: str, *overrides: str) -> TrainConfig:
        """The demo's recipe on the bench's shards, without checkpoints in the way."""
        from mify.training.config import load_recipe

        return load_recipe(
            "demo",
            [
                f"--name={name}", f"--folder={self.folder.name}", f"--data.sources.code.path={self.shards}",
                "--data.sources.code.weight=1", f"--data.rows_per_step={ROWS}", f"--data.context={CONTEXT}",
                "--schedule.kind=constant", "--schedule.warmup_steps=0", "--schedule.decay_steps=none",
                "--evaluation.every_steps=none", "--checkpoint.every_steps=1000000",
                "--data.micro_rows=none",
                f"--parallel.threads={self.options.threads}", "--optimizer.learning_rate=1e-3", *overrides,
            ],
        )  # fmt: skip


def _quiet(step: int, steps: int, record: dict[str, Any]) -> None:
    """No progress."""


def _tiny_step(bench: Bench, case: str) -> None:
    _against_rivals(bench, case, compiled=False)


def _tiny_step_compiled(bench: Bench, case: str) -> None:
    _against_rivals(bench, case, compiled=True)


def _against_rivals(bench: Bench, case: str, *, compiled: bool) -> None:
    """Interleaved rounds of whole runs; a step's time is the least CPU time from step end to step end."""
    import torch

    from mify.config import model_config
    from mify.model import Model

    rounds, steps = (2, 4) if bench.options.quick else (bench.options.rounds, 8)
    warm = 3 if compiled else 1  # steps whose time does not count: they compile, or allocate
    batches = _batches(bench, steps)
    config = bench.config("shape")
    model = Model(model_config(config.model.preset, context=CONTEXT), seed=config.seed)

    def ours(index: int) -> Measured:
        flag = f"--parallel.compile={str(compiled).lower()}"
        return _our_steps(bench.config(f"{case}-{index}", f"--steps={steps}", flag))

    runs: dict[str, Callable[[int], Measured]] = {"mify": ours}
    if rivals.installed("transformers", "accelerate"):
        runs[TRAINER] = lambda index: rivals.trainer_step_seconds(model, batches, compiled=compiled)
    if rivals.installed(*train_litgpt.PACKAGES):
        runs[LITGPT] = lambda index: train_litgpt.step_seconds(model, batches, compiled=compiled)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    losses: dict[str, float] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(bench.options.threads)
    try:
        for index in range(rounds):
            for name, work in runs.items():
                found, records = work(index)
                seconds[name] += found[warm - 1 :]
                losses[name] = records[0]
    finally:
        torch.set_num_threads(before)
    speeds = {name: ROWS * CONTEXT / min(values) for name, values in seconds.items()}
    # The first step's loss is that of equal weights on equal inputs; later ones drift by rounding and by AdamW's
    # decay of embeddings, which the rivals apply and we do not.
    wanted = {TRAINER: losses["mify"], LITGPT: train_litgpt.loss_on_its_terms(model, batches[0])}
    unit, how = "tokens/s of CPU time", "all compiled" if compiled else "none compiled"
    note = f"{bench.options.threads} thread(s), {ROWS} rows of {CONTEXT}, {how}"
    bench.row(case, "throughput", speeds["mify"], unit, note=note)
    for rival, metric in ((TRAINER, "throughput, over transformers"), (LITGPT, "throughput, over litgpt")):
        if rival not in speeds:
            bench.missing(case, metric, unit, f"{rival} is not installed: requirements/nodeps-rivals.txt, mify[rivals]")
            continue
        if abs(losses[rival] - wanted[rival]) > 2e-4 * wanted[rival]:
            raise MifyError(
                f"{rival} computes another loss in its first step: {losses[rival]}, not {wanted[rival]}",
                "report this: the two are not comparable",
            )
        more = "; it attends over whole rows" if rival == LITGPT else ""
        bench.row(
            case, metric, speeds["mify"], unit, rival=rival, rival_value=speeds[rival],
            note=f"its first loss {losses[rival]:.5f}, ours on its terms {wanted[rival]:.5f}{more}",
        )  # fmt: skip


def _our_steps(config: TrainConfig) -> Measured:
    """CPU seconds between the ends of a run's steps, and its losses."""
    from mify.training.trainer import train

    ends: list[float] = []
    losses: list[float] = []

    def clock(step: int, steps: int, record: dict[str, Any]) -> None:
        if "loss" in record:
            ends.append(time.process_time())
            losses.append(record["loss"])

    train(config, clock)
    return [after - before for before, after in pairwise(ends)], losses


def _batches(bench: Bench, steps: int) -> list[PackedBatch]:
    """The batches that the bench's run sees."""
    from mify.training.data import open_stream
    from mify.training.parallel import World

    config = bench.config("batches", f"--steps={steps}")
    import torch

    return list(islice(open_stream(config, World(0, 1, 1, torch.device("cpu"))), steps))


def _overhead(bench: Bench, case: str) -> None:
    from mify.training.metrics import read_metrics
    from mify.training.trainer import train

    steps = 8 if bench.options.quick else 40
    with _timed_model() as model_seconds:
        result = train(bench.config(case, f"--steps={steps}", "--logging.tensorboard=true"), _quiet)
    times = [record["time"] for record in read_metrics(result.folder / "metrics.jsonl") if "loss" in record]
    # The first step plans the window and warms caches up; the others are what a run consists of.
    seconds = [entry["step_seconds"] for entry in times[1:]]
    outside = [1 - model / whole for model, whole in zip(model_seconds[1:], seconds, strict=True)]
    waiting = [entry["load_seconds"] / whole for entry, whole in zip(times[1:], seconds, strict=True)]
    note = f"wall clock, {steps - 1} steps, {bench.options.threads} thread(s); "
    for metric, shares in (("step outside model and optimizer", outside), ("step waiting for data", waiting)):
        worst = f"the worst step {100 * max(shares):.2f}%"
        bench.row(case, metric, 100 * statistics.median(shares), "%", note=f"{note}median; {worst}")


@contextmanager
def _timed_model() -> Iterator[list[float]]:
    """Seconds per step inside forward, backward, gradient norm, AdamW and zero_grad."""
    import torch

    from mify.training import gradients, parallel, trainer

    steps: list[float] = []
    spent = 0.0

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            start = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                spent += time.perf_counter() - start

        return call

    def step_over(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal spent
        done = timed(adamw_step)(optimizer, *args, **kwargs)
        steps.append(spent)
        spent = 0.0
        return done

    adamw_step: Any = torch.optim.AdamW.step
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.optim.AdamW, "step", step_over))
        stack.enter_context(mock.patch.object(gradients, "_backward", timed(gradients._backward)))
        stack.enter_context(mock.patch.object(trainer, "global_norm", timed(parallel.global_norm)))
        yield steps


def _tiny_checkpoint(bench: Bench, case: str) -> None:
    from mify.training import run_state
    from mify.training.trainer import train

    for kind in ("synchronous", "asynchronous"):
        stalls: list[float] = []
        save = run_state.Run.save

        def timed(run: Any, save: Any = save, stalls: list[float] = stalls) -> None:
            start = time.perf_counter()
            save(run)
            stalls.append(time.perf_counter() - start)

        asynchronous = "true" if kind == "asynchronous" else "false"
        overrides = ("--steps=6", "--checkpoint.every_steps=2", f"--checkpoint.asynchronous={asynchronous}")
        with mock.patch.object(run_state.Run, "save", timed):
            train(bench.config(f"{case}-{kind}", *overrides), _quiet)
        median = statistics.median(stalls)
        bench.row(case, f"stall at one a minute, {kind}", 100 * median / 60, "%", note=f"{median * 1e3:.0f} ms a save")


def _async_checkpoint(bench: Bench, case: str) -> None:
    import torch

    from mify.training.checkpoint import Checkpoint, Checkpointer
    from mify.training.parallel import World

    gigabytes = 0.25 if bench.options.quick else 1.0
    count = 16
    size = int(gigabytes * 1e9) // 4 // count
    tensors = {f"model.{index}": torch.randn(size) for index in range(count)}
    world = World(0, 1, 1, torch.device("cpu"))
    held: list[float] = []
    cpu: list[float] = []
    copy: list[float] = []
    twins = {name: tensor.clone() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory(prefix="mify-bench-checkpoint-") as folder:
        checkpointer = Checkpointer(Path(folder), world, keep_last=1, asynchronous=True)
        for step in range(1, 6):
            start, start_cpu = time.perf_counter(), time.thread_time()
            checkpointer.save(Checkpoint(step, dict(tensors), {}))
            held.append((time.perf_counter() - start) / gigabytes)
            cpu.append((time.thread_time() - start_cpu) / gigabytes)
            checkpointer.wait()
            start_cpu = time.thread_time()
            for name, tensor in tensors.items():
                twins[name].copy_(tensor)
            copy.append((time.thread_time() - start_cpu) / gigabytes)
    note = f"{gigabytes:g} GB in {count} tensors, the best of four saves after the first, which allocates the buffers"
    bench.row(case, "save returns after, a GB", min(held[1:]), "s", note=note)
    bench.row(
        case, "save holds the loop, CPU time a GB", min(cpu[1:]), "s", rival="a copy in memory",
        rival_value=min(copy), note=note,
    )  # fmt: skip


def _resume(bench: Bench, case: str) -> None:
    steps = 6
    value = train_exactness.resumed_values_that_differ(bench.config, case, steps)
    bench.row(case, "values that differ", float(value), "values", note=f"{steps} steps, cut at {steps // 2}")


def _ranks(bench: Bench, case: str) -> None:
    steps = 6 if bench.options.quick else 50
    sizes = (2,) if bench.options.quick else (2, 4)
    different = train_exactness.batches_that_differ(bench.config(case, "--data.rows_per_step=4"), (2, 4), 50)
    bench.row(
        case, "global batches that differ", float(different), "batches", note="2 and 4 ranks against one, 50 steps"
    )
    for kind in train_exactness.KINDS:
        worst = train_exactness.loss_difference(bench.config, f"{case}-{kind}", kind, sizes, steps)
        for size, value in worst.items():
            name = f"largest relative loss difference, {kind.replace('-', ' ')}, {size} ranks"
            bench.row(case, name, value, "relative", note=f"{steps} steps, against one rank")


def _large(bench: Bench, case: str) -> None:
    import torch

    metric, unit = "throughput", "tokens/s"
    if not torch.cuda.is_available():
        bench.missing(case, metric, unit, "no CUDA GPU here")
        bench.missing(case, f"{metric}, over transformers", unit, "no CUDA GPU here")
        return
    from mify.training.metrics import read_metrics
    from mify.training.trainer import train

    steps = 8 if bench.options.quick else 20
    config = bench.config(
        case, f"--steps={steps}", "--model.preset=mify-2.5b", "--data.context=8192", "--data.rows_per_step=8",
        "--data.micro_rows=1", "--parallel.device=cuda", "--parallel.precision=bf16",
        "--parallel.activation_checkpointing=selective", "--parallel.compile=true", "--parallel.deterministic=false",
    )  # fmt: skip
    result = train(config, _quiet)
    times = [
        record["time"]["step_seconds"] for record in read_metrics(result.folder / "metrics.jsonl") if "loss" in record
    ]
    bench.row(case, metric, config.tokens_per_step / statistics.median(times[3:]), unit, note="median step, bf16, 8k")
    bench.missing(case, f"{metric}, over transformers", unit, "FA2 and Liger are not installed here")


_CASES: dict[str, Callable[[Bench, str], None]] = {
    "tiny-step": _tiny_step,
    "tiny-step-compiled": _tiny_step_compiled,
    "sft-step": sft_step,
    "tiny-overhead": _overhead,
    "tiny-checkpoint": _tiny_checkpoint,
    "async-checkpoint": _async_checkpoint,
    "resume": _resume,
    "ranks": _ranks,
    "2.5b-8k-bf16": _large,
}
