"""All that a run holds between two steps: model, optimizer, stream, guard, checkpoints, metrics; and its set-up.

The loop that uses it is in `trainer.py`.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from mify.config import ModelConfig
from mify.data.batch import PackedBatch
from mify.errors import MifyError
from mify.files import make_folder, read_json, write_json
from mify.fp8 import state_was_loaded
from mify.kernels import cost
from mify.tokenizer import Tokenizer

from .blame import suspects
from .checkpoint import FOLDER as CHECKPOINTS
from .checkpoint import Checkpoint, Checkpointer, load_tensors, read_state, restore_rng, tensors_of
from .config import TrainConfig, changed_keys
from .data import open_stream, tokenizer_path
from .evaluate import HeldOut
from .gradients import Step, gradient_factor
from .metrics import MetricsLog
from .model import lora_config, make_model, model_to_sample
from .objective import open_objective
from .optim import make_optimizer
from .parallel import World, distribute, memory_bytes, peak_flops
from .prefetch import Prefetcher, Stream
from .report import write_report
from .stability import Guard, Verdict
from .tensorboard import EventWriter
from .wandb_writer import WandbWriter

Progress = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """What a run ended with."""

    folder: Path
    checkpoint: Path
    step: int
    loss: float | None  # of the last step, nats per token; None where no step was left to do
    held_out_bits_per_byte: dict[str, float]
    ledger: dict[str, Any]


class Run:
    """One run on one rank, from its folder: fresh, resumed, or branched from another run's checkpoint.

    Raises:
        MifyError: the folder holds a run of another configuration, a path is wrong, a checkpoint does not fit.
    """

    def __init__(self, config: TrainConfig, world: World, progress: Progress | None = None) -> None:
        self.config, self.world, self.progress = config, world, progress
        self.folder = config.run_folder
        self.step = 0  # updates done or skipped
        self.batch_index = 0  # batches taken from the stream: step + what rollbacks passed over
        self.trained_tokens = 0  # labelled tokens that entered an update
        self.rollbacks = 0
        self.batch: PackedBatch | None = None  # this rank's rows of the step under way
        self._ledger: dict[str, Any] | None = None  # of the checkpoint that was loaded
        self.passed_over: list[dict[str, Any]] = []
        self._stop = False
        self._seconds: deque[float] = deque(maxlen=20)
        self._peak_flops = peak_flops(world)
        self._flops_per_step = 0.0
        self._tokens_per_step = config.tokens_per_step
        self._claim_folder()
        torch.manual_seed(config.seed)
        self.tokenizer_path = tokenizer_path(config)
        self.tokenizer = Tokenizer.load(self.tokenizer_path) if self.tokenizer_path else None
        model, weights = make_model(config, world, self.tokenizer)
        self.model_config: ModelConfig = model.config
        self.lora = lora_config(config)
        self.model = distribute(model, config.parallel, world, weights)
        state_was_loaded(self.model)
        del weights
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.stream: Stream = open_stream(config, world)
        self.objective = open_objective(config, world, self.model, self.stream)
        self.guard = Guard(config.stability)
        self.held_out = HeldOut.load(config.evaluation) if config.evaluation.held_out else None
        checkpoint = config.checkpoint
        self.checkpointer = Checkpointer(
            self.folder,
            world,
            keep_last=checkpoint.keep_last,
            keep_every_steps=checkpoint.keep_every_steps,
            asynchronous=checkpoint.asynchronous,
        )
        lines = self._resume()
        for note in getattr(self.stream, "notes", list)():
            self.say(note)
        ahead = 0 if config.objective == "grpo" else 2  # rollouts are made with the weights of their step
        self.batches = Prefetcher(self.stream, ahead=ahead, pin_memory=world.device.type == "cuda", ledger=self._ledger)
        self.metrics = MetricsLog(self.folder / "metrics.jsonl", lines) if world.is_main else None
        self.writers: list[EventWriter | WandbWriter] = []
        if world.is_main and config.logging.tensorboard:
            self.writers.append(EventWriter(self.folder / "tensorboard", self.step))
        if world.is_main and config.logging.wandb:
            self.writers.append(WandbWriter(config))
        self._handlers: dict[int, Any] = {}

    # ---- set-up

    def _claim_folder(self) -> None:
        make_folder(self.folder)
        path = self.folder / "config.json"
        # What never came to a checkpoint may start again with other keys: nothing is lost.
        if path.is_file() and any((self.folder / CHECKPOINTS).glob("step-*")):
            saved = read_json(path)
            # Read anew, so that a key that came with a later mify stands at its default.
            changed = changed_keys(TrainConfig.from_dict(saved["config"]).to_dict(), self.config.to_dict())
            if changed:
                raise MifyError(
                    f"{self.folder} holds a run with another configuration: {', '.join(changed)} changed",
                    "give the new run another --name, or put the keys back to go on with the old one",
                )
        if self.world.is_main:
            plain = self.config.to_dict()
            document = {"format": "mify-train-config", "version": 1, "hash": self.config.hash, "config": plain}
            write_json(path, document)
        self.world.barrier()

    def _resume(self) -> int:
        """Loads the newest whole checkpoint, or that of `init.state`; returns how many metrics lines stay."""
        checkpoint = self.config.checkpoint
        newest = self.checkpointer.newest(verify=checkpoint.verify, say=self.say)
        if newest is not None:
            lines = self._load(newest)
            self.say(f"resuming {self.folder} at step {self.step}")
            return lines
        if self.config.init.state:
            self._load(Path(self.config.init.state))
            self.say(f"branching from {self.config.init.state} at step {self.step}")
        return 0

    def _load(self, folder: Path, *, keep_stream: bool = False) -> int:
        """Puts the run back to a checkpoint. With `keep_stream` the data goes on where it is (a rollback)."""
        state = read_state(folder)
        tensors = tensors_of(self.model, self.optimizer, self.world)
        load_tensors(folder, tensors)
        state_was_loaded(self.model, gradient_factor=gradient_factor(self))
        restore_rng(tensors, self.world)
        self.step, self.trained_tokens = state["step"], state["trained_tokens"]
        if not keep_stream:
            self.batch_index, self._ledger = state["batch_index"], state["ledger"]
            self.rollbacks, self.passed_over = state["rollbacks"], state["passed_over"]
            self.stream.load_state_dict(state["stream"])
            self.guard.load_state_dict(state["guard"])
        lines: int = state["metrics_lines"]
        return lines

    # ---- what the loop calls

    def next_batch(self) -> PackedBatch:
        """This rank's rows of the next global batch. Raises `MifyError` where the stream ends before the run."""
        batch = self.batches.next()
        if batch is not None and self._peak_flops is not None:
            lengths = batch.cu_seqlens.diff().tolist()
            work = cost.Workload.documents([length for length in lengths if length])
            self._flops_per_step = self.world.size * cost.model_flops(self.model_config, work).total
        if batch is None:
            raise MifyError(
                f"the data ended after {self.batch_index} batches, before steps = {self.config.steps}",
                f"set --steps={self.step}, or --data.exhausted=repeat",
            )
        self.batch_index += 1
        self._tokens_per_step = batch.num_tokens * self.world.size
        self.batch = batch
        return batch

    def save(self) -> None:
        """A checkpoint of this step."""
        state = {
            "batch_index": self.batch_index,
            "trained_tokens": self.trained_tokens,
            "rollbacks": self.rollbacks,
            "passed_over": self.passed_over,
            "stream": self.batches.state,
            "ledger": self.batches.ledger,
            "guard": self.guard.state_dict(),
            "config_hash": self.config.hash,
            "metrics_lines": self.metrics.lines if self.metrics else 0,
        }
        self.checkpointer.save(
            Checkpoint(
                step=self.step,
                tensors=tensors_of(self.model, self.optimizer, self.world),
                state=state,
                documents={
                    "model.json": self.model_config.to_dict(),
                    "config.json": self.config.to_dict(),
                    **({"lora.json": self.lora.to_dict()} if self.lora is not None else {}),
                },
                files={"tokenizer.json": self.tokenizer_path} if self.tokenizer_path else {},
            ),
            before_commit=self.metrics.sync if self.metrics else None,
        )

    def roll_back(self, reason: str) -> None:
        """Back to the last checkpoint; the batches since then are passed over and logged."""
        self.checkpointer.wait()
        newest = self.checkpointer.newest(verify=self.config.checkpoint.verify, say=self.say)
        self.rollbacks += 1
        if newest is None or self.rollbacks > self.config.stability.max_rollbacks:
            raise MifyError(
                f"{reason} at step {self.step + 1}, and "
                + (
                    "there is no checkpoint to go back to"
                    if newest is None
                    else f"{self.rollbacks - 1} rollbacks did not help"
                ),
                "lower optimizer.learning_rate, lengthen schedule.warmup_steps, or look at the batches that "
                f"{self.folder / 'metrics.jsonl'} names",
            )
        before, last = self.step, self.batch_index
        blamed = suspects(self, self.batch) if self.batch is not None else {}
        self._load(newest, keep_stream=True)
        self.batches.drop()
        self.guard.reset()
        first = last - (before + 1 - self.step)
        self.passed_over.append({"first_batch": first, "last_batch": last - 1, "reason": reason})
        self.record(
            {
                "step": self.step,
                "event": "rolled back",
                "reason": reason,
                "from_step": before,
                "batches": [first, last - 1],
                **blamed,  # of the last of them; those before were logged when they were skipped
            }
        )

    def record(self, record: dict[str, Any]) -> None:
        """One line of metrics, to the file, TensorBoard and whoever watches."""
        if not self.world.is_main:
            return
        assert self.metrics is not None
        self.metrics.write(record)
        for writer in self.writers:
            writer.write(record)
        if self.progress is not None:
            self.progress(self.step, self.config.steps, record)

    def evaluate(self) -> dict[str, float]:
        """Held-out bits per byte per domain of the model as it is."""
        started = time.perf_counter()
        if others := self.objective.evaluate():
            self.record({"step": self.step, **others, "time": {"seconds": time.perf_counter() - started}})
        if self.held_out is None:
            return {}
        started = time.perf_counter()
        self.model.tokenizer = self.tokenizer
        scores = self.held_out.bits_per_byte(self.model)
        record: dict[str, Any] = {"step": self.step, "held_out_bits_per_byte": scores}
        if self.held_out.lines is not None:
            exact = self.held_out.infilling_exact(model_to_sample(self.model, self.config))
            record["infilling_exact_match"] = sum(exact.values()) / len(exact)
        record["time"] = {"seconds": time.perf_counter() - started}
        self.record(record)
        return scores

    def is_due(self, every: int | None) -> bool:
        """Whether what happens every `every` steps, and after the last, happens now (never amid bad steps)."""
        last = self.step == self.config.steps
        return last or (every is not None and self.step % every == 0 and self.guard.skips == 0)

    def log_step(
        self,
        verdict: Verdict,
        done: Step,
        norm: float,
        rate: float,
        *,
        load_seconds: float,
        started: float,
    ) -> None:
        """The record of the step that is over."""
        now, loss = time.perf_counter(), done.loss
        self._seconds.append(now - started)
        if verdict is Verdict.SKIP:
            reason = f"loss {loss}, gradient norm {norm}"
            blamed = suspects(self, self.batch) if self.batch is not None else {}
            skipped = {"step": self.step, "event": "skipped", "reason": reason, "batch": self.batch_index - 1}
            self.record(skipped | blamed)
        elif self.guard.is_spike:
            reason = f"loss {loss:.4f} above {self.guard.threshold():.4f}"
            self.record({"step": self.step, "event": "spike", "reason": reason, "batch": self.batch_index - 1})
        if self.step % self.config.logging.every_steps and self.step != self.config.steps:
            return
        mean = sum(self._seconds) / len(self._seconds)
        facts = dict(self.objective.facts())
        clock = facts.pop("time", {})
        self.record(
            {
                "step": self.step,
                "loss": loss if math.isfinite(loss) else None,
                "gradient_norm": norm if math.isfinite(norm) else None,
                "learning_rate": rate,
                "labelled_tokens": done.tokens,
                "trained_tokens": self.trained_tokens,
                **done.sums,
                **facts,
                "time": {
                    "tokens_per_second": self._tokens_per_step / mean,
                    "step_seconds": now - started,
                    "load_seconds": load_seconds,
                    "eta_seconds": mean * (self.config.steps - self.step),
                    "memory_bytes": memory_bytes(self.world),
                    **clock,
                    **self._mfu(mean),
                },
            }
        )

    def _mfu(self, seconds: float) -> dict[str, float]:
        """Model FLOPs over visible pairs, as a share of the GPU's bf16 peak; nothing where no peak is known."""
        if self._peak_flops is None:
            return {}
        return {"mfu": self._flops_per_step / self.world.size / (seconds * self._peak_flops)}

    def result(self, loss: float | None, scores: dict[str, float]) -> TrainResult:
        """What the run ended with. Waits for the last checkpoint and writes the report."""
        self.checkpointer.wait()
        newest = self.checkpointer.path(self.step)
        if self.world.is_main:
            write_report(self.folder, self.batches.ledger)
        return TrainResult(self.folder, newest, self.step, loss, scores, self.batches.ledger)

    def say(self, message: str) -> None:
        """A line for the person who watches, from rank 0 alone."""
        if self.world.is_main:
            say = getattr(self.progress, "say", None)
            if say is not None:
                say(message)
            else:
                print(message, file=sys.stderr)

    # ---- Ctrl-C and the scheduler's SIGTERM end the run after the step under way, with a checkpoint

    @property
    def stop_asked(self) -> bool:
        return self._stop

    def __enter__(self) -> Run:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        except ValueError:
            self._handlers = {}  # not in the main thread: the caller keeps its own handlers
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True
        self.say("stopping after this step; the state is saved (again to stop at once, without saving)")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.batches.close()
        self.objective.close()
        try:
            self.checkpointer.wait()
        finally:
            for writer in (self.metrics, *self.writers):
                if writer is not None:
                    writer.close()
