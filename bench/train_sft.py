"""Case `sft-step` of `mify bench train`: fine-tuning steps against TRL's SFTTrainer, its packing on.

The same conversations, one in five tokens with loss, the same mify-tiny with 65,536 ids and the same threads, in
interleaved rounds. Both pack best-fit by themselves, so their rows differ; counted are tokens of conversations, without
padding. That both compute the same thing is checked first: the loss of TRL's first batch, by our model.
"""

from __future__ import annotations

import sysconfig
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.bench import train_rivals as rivals
from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.bench.bench_train import Bench

ROWS, CONTEXT, VOCAB = 8, 512, 65_536
RIVAL = "trl SFTTrainer"


def sft_step(bench: Bench, case: str) -> None:
    """Adds the rows of the case to `bench`."""
    import torch

    from mify.config import model_config
    from mify.model import Model
    from mify.training.trainer import train

    rounds, steps = (2, 3) if bench.options.quick else (bench.options.rounds, 6)
    folder = Path(bench.folder.name) / "sft"
    conversations = _write_conversations(folder, 24 * ROWS)
    ours: list[float] = []
    theirs: list[float] = []
    has_rival = rivals.installed("trl")
    threads = torch.get_num_threads()
    torch.set_num_threads(bench.options.threads)
    try:
        for index in range(rounds):
            ends: list[tuple[float, int]] = []

            def clock(step: int, total: int, record: dict[str, Any], ends: list = ends) -> None:
                if "loss" in record:
                    ends.append((time.process_time(), 0))

            config = _config(bench, f"{case}-{index}", folder, steps)
            train(config, clock)
            seconds = [after[0] - before[0] for before, after in pairwise(ends)]
            ours.append(max(count / spent for count, spent in zip(_tokens(config, steps)[1:], seconds, strict=True)))
            if has_rival:
                model = Model(model_config("mify-tiny", vocab_size=VOCAB, context=CONTEXT), seed=config.seed)
                found = rivals.trl_steps(model, conversations, rows=ROWS, context=CONTEXT, steps=steps)
                theirs.append(max(found.tokens_per_second))
                if index == 0:
                    _same_loss(model, found)
    finally:
        torch.set_num_threads(threads)
    supervised = sum(sum(loss) for _, loss in conversations) / sum(len(ids) for ids, _ in conversations)
    note = f"{bench.options.threads} thread(s), {ROWS} rows of {CONTEXT}, {VOCAB} ids, {supervised:.0%} with loss"
    metric, unit = "throughput", "tokens/s of CPU time"
    bench.row(case, metric, max(ours), unit, note=note)
    if has_rival:
        bench.row(case, f"{metric}, over trl", max(ours), unit, rival=RIVAL, rival_value=max(theirs), note=note)
    else:
        bench.missing(case, f"{metric}, over trl", unit, "trl is not installed (the extra rivals)")


def _write_conversations(folder: Path, count: int) -> list[tuple[list[int], list[bool]]]:
    """Functions of the standard library as questions, a quarter as much of their text as answers; and their ids."""
    from mify.post.chat import Conversation, Message, render
    from mify.tokenizer import train_tokenizer

    library = Path(sysconfig.get_paths()["stdlib"])
    text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in sorted(library.glob("*.py"))[:40])
    tokenizer = train_tokenizer([text[:400_000]], 4096)
    tokenizer.save(folder / "tokenizer")
    made, place = [], 0
    for index in range(count):
        size = 300 + 211 * index % 900
        question, answer = text[place : place + size], text[place + size : place + size + size // 4 + 8]
        place += size
        made.append(Conversation((Message("user", question), Message("assistant", answer)), id=str(index)))
    lines = "".join(conversation.to_json() + "\n" for conversation in made)
    (folder / "conversations.jsonl").write_text(lines, encoding="utf-8")
    return [render(conversation, tokenizer) for conversation in made]


def _config(bench: Bench, name: str, folder: Path, steps: int) -> Any:
    return bench.config(
        name, f"--steps={steps}", "--objective=sft", f"--data.tokenizer={folder / 'tokenizer'}",
        f"--data.sources.code.path={folder / 'conversations.jsonl'}", "--data.sources.code.weight=1",
        f"--data.rows_per_step={ROWS}", f"--data.context={CONTEXT}", f"--model.vocab_size={VOCAB}", "--data.fim.rate=0",
        "--logging.every_steps=1", "--evaluation.held_out=none",
    )  # fmt: skip


def _tokens(config: Any, steps: int) -> list[int]:
    """Tokens of conversations in each step."""
    import torch

    from mify.training.data import open_stream
    from mify.training.parallel import World

    stream: Any = open_stream(config, World(0, 1, 1, torch.device("cpu")))
    counts, before = [], 0
    for _, _ in zip(range(steps), stream, strict=False):
        counts.append(stream.tokens[0] - before)
        before = stream.tokens[0]
    return counts


def _same_loss(model: Any, found: rivals.TrlSteps) -> None:
    """Raises MifyError where our model's loss of TRL's first batch is not the one that TRL logged."""
    import torch

    from mify.data.batch import IGNORE_LABEL, PackedBatch

    ids, labels, positions = (found.first_batch[key].reshape(-1) for key in ("input_ids", "labels", "position_ids"))
    starts = torch.nonzero(positions == 0).flatten().to(torch.int32)
    bounds = torch.cat([starts, torch.tensor([len(ids)], dtype=torch.int32)])
    shifted = torch.cat([labels[1:], torch.tensor([IGNORE_LABEL])])
    with torch.no_grad():
        loss, count = model.loss(PackedBatch(ids, shifted, positions, bounds, CONTEXT))
    mean = float(loss) / int(count)
    if abs(mean - found.first_loss) > 2e-4 * mean:
        raise MifyError(f"the losses of TRL's first batch differ: {mean} and {found.first_loss}", "not comparable")
