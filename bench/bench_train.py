"""`mify bench train`: tokens/s against transformers' Trainer, what the trainer adds, checkpoints, exactness.

On a CPU: mify-tiny, the same packed inputs, the same threads, both not compiled, CPU time from step end to step end,
interleaved rounds. That both compute the same thing is checked first: equal weights and batches must give equal losses.
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

from mify.bench import train_rivals as rivals
from mify.bench.rows import Row
from mify.bench.suite import Options
from mify.bench.train_sft import sft_step
from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.data.batch import PackedBatch
    from mify.training.config import TrainConfig

CASES = {
    "tiny-step": "mify-tiny on CPU threads: tokens/s of whole training steps, against transformers' Trainer",
    "sft-step": "fine-tuning steps, one in five tokens with loss, 65,536 ids: tokens/s against TRL's SFTTrainer",
    "tiny-overhead": "what of a step is neither model nor optimizer, and what of it waits for data",
    "tiny-checkpoint": "the stall of a checkpoint of mify-tiny, as a share of a minute",
    "async-checkpoint": "how long an asynchronous save holds the loop, by the gigabyte",
    "resume": "bits that differ between a resumed run and an uninterrupted one",
    "ranks": "how far the losses of two ranks lie from those of one (50 steps, fp32)",
    "2.5b-8k-bf16": "mify-2.5b on one GPU, 8k packed: tokens/s",
}
ROWS, CONTEXT = 8, 512


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
    import torch

    from mify.config import model_config
    from mify.model import Model
    from mify.training.trainer import train

    rounds, steps = (2, 4) if bench.options.quick else (bench.options.rounds, 8)
    batches = _batches(bench, steps)
    before = torch.get_num_threads()
    torch.set_num_threads(bench.options.threads)
    seconds: dict[str, list[float]] = {"mify": [], "transformers Trainer": []}
    losses: dict[str, list[float]] = {}
    has_rival = rivals.installed("transformers") and rivals.installed("accelerate")
    try:
        for index in range(rounds):
            ends: list[float] = []
            records: list[float] = []

            def clock(step: int, total: int, record: dict[str, Any], ends: list = ends, to: list = records) -> None:
                if "loss" in record:
                    ends.append(time.process_time())
                    to.append(record["loss"])

            config = bench.config(f"{case}-{index}", f"--steps={steps}")
            train(config, clock)
            seconds["mify"] += _differences(ends)
            losses["mify"] = records
            if has_rival:
                model = Model(model_config(config.model.preset, context=CONTEXT), seed=config.seed)
                theirs, losses["transformers Trainer"] = rivals.trainer_step_seconds(model, batches)
                seconds["transformers Trainer"] += theirs
    finally:
        torch.set_num_threads(before)
    speeds = {name: ROWS * CONTEXT / min(values) for name, values in seconds.items() if values}
    metric, unit = "throughput", "tokens/s of CPU time"
    note = f"{bench.options.threads} thread(s), {ROWS} rows of {CONTEXT}, not compiled"
    bench.row(case, metric, speeds["mify"], unit, note=note)
    if not has_rival:
        bench.missing(case, f"{metric}, over transformers", unit, "transformers and accelerate are not installed")
    else:
        # The first step's loss is that of equal weights on equal inputs; later ones drift by rounding and by AdamW's
        # decay of embeddings, which the rival applies and we do not.
        first, other = losses["mify"][0], losses["transformers Trainer"][0]
        if abs(first - other) > 2e-4 * first:
            raise MifyError(f"the losses of the first step differ: {first} and {other}", "report this: not comparable")
        rival = "transformers Trainer"
        bench.row(
            case, f"{metric}, over transformers", speeds["mify"], unit, rival=rival, rival_value=speeds[rival],
            note=f"first losses {first:.5f} and {other:.5f}",
        )  # fmt: skip
    bench.missing(case, f"{metric}, over litgpt", unit, "litgpt pins another torch; it is not installed here")


def _batches(bench: Bench, steps: int) -> list[PackedBatch]:
    """The batches that the bench's run sees."""
    from mify.training.data import open_stream
    from mify.training.parallel import World

    config = bench.config("batches", f"--steps={steps}")
    import torch

    return list(islice(open_stream(config, World(0, 1, 1, torch.device("cpu"))), steps))


def _differences(ends: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(ends)]


def _overhead(bench: Bench, case: str) -> None:
    from mify.training.metrics import read_metrics
    from mify.training.trainer import train

    steps = 8 if bench.options.quick else 40
    with _timed_model() as model_seconds:
        result = train(bench.config(case, f"--steps={steps}", "--logging.tensorboard=true"), _quiet)
    times = [record["time"] for record in read_metrics(result.folder / "metrics.jsonl") if "loss" in record]
    # The first step plans the window and warms caches up; the others are what a run consists of.
    total = sum(entry["step_seconds"] for entry in times[1:])
    model = sum(model_seconds[1:])
    waiting = sum(entry["load_seconds"] for entry in times[1:])
    note = f"{steps - 1} steps, {bench.options.threads} thread(s)"
    bench.row(case, "step outside model and optimizer", 100 * (total - model) / total, "%", note=note)
    bench.row(case, "step waiting for data", 100 * waiting / total, "%", note=note)


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
    with tempfile.TemporaryDirectory(prefix="mify-bench-checkpoint-") as folder:
        checkpointer = Checkpointer(Path(folder), world, keep_last=1, asynchronous=True)
        for step in range(1, 4):
            start = time.thread_time()
            checkpointer.save(Checkpoint(step, dict(tensors), {}))
            held.append(time.thread_time() - start)
            checkpointer.wait()
    note = f"{gigabytes:g} GB in {count} tensors, the later of three saves (the first allocates the buffers)"
    bench.row(case, "save holds the loop, CPU time a GB", min(held[1:]) / gigabytes, "s", note=note)


def _resume(bench: Bench, case: str) -> None:
    import shutil

    from mify.training.metrics import read_metrics, without_times
    from mify.training.trainer import train

    overrides = ("--steps=6", "--checkpoint.every_steps=3", "--data.rows_per_step=2")
    whole = train(bench.config(f"{case}-whole", *overrides), _quiet)
    resumed = bench.config(f"{case}-resumed", *overrides)
    again = train(resumed, _quiet)
    shutil.rmtree(again.checkpoint)  # what a kill before step 6 leaves
    again = train(resumed, _quiet)
    lines = [without_times(read_metrics(result.folder / "metrics.jsonl")) for result in (whole, again)]
    differing = _differing_bytes(whole.checkpoint, again.checkpoint)
    bench.row(case, "values that differ", float(differing + (lines[0] != lines[1])), "values", note="6 steps, cut at 3")


def _differing_bytes(one: Path, two: Path) -> int:
    """How many tensor elements of two checkpoints differ in any bit."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    loaded = []
    with tempfile.TemporaryDirectory() as folder:
        for path in (one, two):
            dcp_to_torch_save(path / "dcp", Path(folder) / "all.pt")
            loaded.append(torch.load(Path(folder) / "all.pt"))
    first, second = loaded
    if first.keys() != second.keys():
        return len(first.keys() ^ second.keys())
    return sum(int((first[key] != second[key]).sum()) for key in first)


def _ranks(bench: Bench, case: str) -> None:
    import os
    import socket
    import subprocess
    import sys

    from mify.training.metrics import read_metrics
    from mify.training.trainer import train

    steps = 6 if bench.options.quick else 50
    small = (
        f"--steps={steps}", "--data.rows_per_step=4", "--data.micro_rows=1", "--model.num_layers=2",
        "--model.hidden_size=64", "--model.ffn_size=128", "--data.context=128", "--model.vocab_size=4096",
    )  # fmt: skip
    for kind, extra in (("sharded", ()), ("fixed order", ("--parallel.fixed_order=true",))):
        name = f"{case}-{kind.replace(' ', '-')}"
        one = train(bench.config(f"{name}-one", *small, *extra), _quiet)
        two = bench.config(f"{name}-two", *small, *extra)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        code = (
            "import json, sys; from mify.training.config import TrainConfig; from mify.training.trainer import train;"
            "train(TrainConfig.from_dict(json.loads(sys.argv[1])), lambda *a: None)"
        )
        import json

        processes = []
        for rank in range(2):
            environment = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            command = [sys.executable, "-c", code, json.dumps(two.to_dict())]
            processes.append(subprocess.Popen(command, env=environment))
        if any(process.wait() for process in processes):
            raise MifyError("a rank of the bench failed", "see its message above")
        curves = [
            [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if "loss" in record]
            for folder in (one.folder, two.run_folder)
        ]
        worst = max(abs(a - b) / a for a, b in zip(*curves, strict=True))
        bench.row(case, f"largest relative loss difference, {kind}", worst, "relative", note=f"{steps} steps")


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
    "sft-step": sft_step,
    "tiny-overhead": _overhead,
    "tiny-checkpoint": _tiny_checkpoint,
    "async-checkpoint": _async_checkpoint,
    "resume": _resume,
    "ranks": _ranks,
    "2.5b-8k-bf16": _large,
}
