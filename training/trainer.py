"""The training loop.

A step: take the global batch's share of this rank, sum gradients over micro-batches normalised by the labelled tokens
(or pairs, or sequences) of *all* ranks and micro-batches, so that neither the split nor the world size changes what is
learnt, judge the numbers, update, write down, save. What a step needs lives in `Run`, what is minimised in an
`Objective`, how the work is spread in `parallel`.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack

from mify.fp8 import end_step

from .config import TrainConfig
from .display import Display
from .gradients import accumulate, gradient_factor
from .optim import learning_rate, set_learning_rate
from .parallel import global_norm, open_world
from .profile import profiler
from .run_state import Progress, Run, TrainResult
from .stability import Verdict


def train(config: TrainConfig, progress: Progress | None = None) -> TrainResult:
    """Runs `config` to its last step, from wherever its folder stands.

    Args:
        progress: called on rank 0 with (step, steps, record) for every record of metrics; None: a live line.

    Raises:
        MifyError: a mistake in the configuration or its files, a full disk, numbers that stay wrong.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the state is saved.
    """
    with ExitStack() as stack:
        world = stack.enter_context(open_world(config.parallel))
        shown = progress if progress is not None else stack.enter_context(Display())
        run = stack.enter_context(Run(config, world, shown))
        profile = stack.enter_context(profiler(config, world))
        loss, scores = None, {}

        while run.step < config.steps:
            started = time.perf_counter()
            rate = learning_rate(run.step, config.steps, config.optimizer.learning_rate, config.schedule)
            set_learning_rate(run.optimizer, rate)
            batch = run.next_batch()
            load_seconds = time.perf_counter() - started
            done = accumulate(run, batch)
            loss = done.loss
            norm = global_norm(run.model, config.optimizer.clip_norm)
            verdict = run.guard.judge(loss, norm)
            if verdict is Verdict.ROLL_BACK:
                run.optimizer.zero_grad()
                run.roll_back("the loss spikes" if math.isfinite(loss + norm) else "loss or gradient is not finite")
                continue
            if verdict is Verdict.TAKE:
                run.optimizer.step()
                run.trained_tokens += done.tokens
            run.optimizer.zero_grad()
            end_step(run.model, world.maximum, gradient_factor=gradient_factor(run))
            run.step += 1
            profile.step()
            run.log_step(verdict, done, norm, rate, load_seconds=load_seconds, started=started)
            if run.is_due(config.evaluation.every_steps):
                scores = run.evaluate()
            if done.stop or run.is_due(config.checkpoint.every_steps):
                run.save()
            if done.stop:
                raise KeyboardInterrupt

        return run.result(loss, scores)
