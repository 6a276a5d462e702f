"""Data that end before the run does are refused before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy import toy_config

from mify.curation.documents import Document
from mify.data.shards import write_shards
from mify.errors import MifyError
from mify.tokenizer import train_tokenizer
from mify.training.data import open_stream
from mify.training.parallel import World

ALONE = World(0, 1, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    texts = [f"def f{i}(a, b):\n    return a * {i} + b\n" * 20 for i in range(60)]
    tokenizer = train_tokenizer(texts, 400)
    documents = [Document.create(t, "code", "python", "MIT", "s", "r", str(i)) for i, t in enumerate(texts)]
    write_shards(documents[:10], tokenizer, folder / "small")
    write_shards(documents[10:], tokenizer, folder / "large")
    return {name: folder / name for name in ("small", "large")}


def config(tmp_path: Path, sources: dict[str, Path], steps: int, exhausted: str):  # type: ignore[no-untyped-def]
    given = [f"--data.sources.{name}.path={path}" for name, path in sources.items()]
    given += [f"--data.sources.{name}.weight=1" for name in sources]
    sizes = ["--data.context=64", "--data.rows_per_step=4", f"--steps={steps}", f"--data.exhausted={exhausted}"]
    return toy_config(tmp_path, *given, *sizes)


def test_what_suffices_is_taken_and_repetition_always(tmp_path: Path, sources: dict[str, Path]) -> None:
    for steps, exhausted in ((8, "stop"), (20, "reweight"), (100_000, "repeat")):
        stream = open_stream(config(tmp_path, sources, steps, exhausted), ALONE)
        assert next(iter(stream)).num_rows == 4


@pytest.mark.parametrize(("exhausted", "message"), [("stop", "source 'small' lasts"), ("reweight", "together last")])
def test_what_cannot_suffice_is_refused_with_the_steps_that_it_lasts(
    exhausted: str, message: str, tmp_path: Path, sources: dict[str, Path]
) -> None:
    with pytest.raises(MifyError, match=f"{message} for about") as refused:
        open_stream(config(tmp_path, sources, 3000, exhausted), ALONE)
    promised = int(refused.value.problem.split("about ")[1].split()[0])
    # That many steps are really there.
    stream = open_stream(config(tmp_path, sources, promised, exhausted), ALONE)
    assert sum(1 for _ in stream) >= promised
