"""Generation against transformers' greedy search, batches against single prompts, sampling against probabilities."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_model import llama, small

from mify.errors import MifyError
from mify.export.conventions import Conventions
from mify.export.weights import remember_conventions
from mify.generate import crop_infill, generate
from mify.model import Model
from mify.tokenizer import Tokenizer, train_tokenizer

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], [3, 8]]


def lively(seed: int = 0, **changes: Any) -> Model:
    """A random model whose next tokens differ: larger weights than at the start of training."""
    model = Model(small(**changes), seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(60 if name.endswith(("o_proj.weight", "down_proj.weight")) else 6)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["def add(a, b):\n    return a + b\n", "the quick brown fox jumps over the lazy dog"], 400)


@pytest.mark.parametrize("tie", [True, False])
def test_greedy_equals_transformers(tie: bool) -> None:
    model = lively(tie_embeddings=tie)
    rival = llama(model)
    seen = set()
    for prompt in PROMPTS:
        ours = generate(model, [prompt], max_new_tokens=40)[0]
        theirs = rival.generate(
            torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert ours == theirs[0, len(prompt) :].tolist()
        seen.update(ours)
    assert len(seen) > 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ragged_batch_equals_its_prompts_alone(temperature: float) -> None:
    model = lively()
    together = generate(model, PROMPTS, max_new_tokens=30, temperature=temperature, seed=7)
    if temperature == 0:
        alone = [generate(model, [prompt], max_new_tokens=30)[0] for prompt in PROMPTS]
        assert together == alone
    else:
        assert together == generate(model, PROMPTS, max_new_tokens=30, temperature=1.0, seed=7)
        assert together[:2] == generate(model, PROMPTS[:2], max_new_tokens=30, temperature=1.0, seed=7)
        assert together != generate(model, PROMPTS, max_new_tokens=30, temperature=1.0, seed=8)


def test_stop_ids_end_one_sequence_and_not_the_others() -> None:
    model = lively()
    free = generate(model, PROMPTS, max_new_tokens=30)
    stop = free[0][10]
    stopped = generate(model, PROMPTS, max_new_tokens=30, stop_ids=[stop])
    for before, after in zip(free, stopped, strict=True):
        assert after == (before[: before.index(stop)] if stop in before else before)


def test_the_context_ends_a_sequence() -> None:
    model = lively()
    context = model.config.context
    new = generate(model, [[1] * (context - 3), [1, 2]], max_new_tokens=500)
    assert [len(n) for n in new] == [3, context - 2]


def test_sampling_follows_the_probabilities() -> None:
    model = lively()
    draws = 4000
    prompt = PROMPTS[0]
    counts = torch.zeros(model.config.vocab_size)
    for token in generate(model, [prompt] * draws, max_new_tokens=1, temperature=1.5, seed=1):
        counts[token[0]] += 1
    tokens = torch.tensor(prompt)
    with torch.no_grad():
        hidden = model(tokens, torch.arange(5), torch.tensor([0, 5], dtype=torch.int32), 64)
    expected = torch.softmax(model.logits(hidden)[-1] / 1.5, -1)
    assert (counts / draws - expected).abs().max() < 4 * (0.25 / draws) ** 0.5

    for options, allowed in (
        ({"top_k": 3}, set(expected.topk(3).indices.tolist())),
        ({"top_p": 0.3}, _nucleus(expected, 0.3)),
    ):
        new = generate(model, [prompt] * 300, max_new_tokens=1, temperature=1.5, seed=2, **options)
        assert {token[0] for token in new} == allowed
    assert len(_nucleus(expected, 0.3)) > 1


def _nucleus(probabilities: torch.Tensor, top_p: float) -> set[int]:
    chosen: set[int] = set()
    mass = 0.0
    for token in probabilities.argsort(descending=True).tolist():
        if mass >= top_p:
            break
        chosen.add(token)
        mass += probabilities[token].item()
    return chosen


def test_text_in_text_out(tokenizer: Tokenizer) -> None:
    model = lively(vocab_size=400)
    model.tokenizer = tokenizer
    whole = model.generate("def add(a", max_new_tokens=40)
    assert whole == model.generate(tokenizer.encode("def add(a"), max_new_tokens=40)
    stop = whole[5:7]
    assert model.generate("def add(a", max_new_tokens=40, stop=[stop]) == whole[: whole.index(stop)]
    assert model.generate("", max_new_tokens=3) == model.generate([tokenizer.eot_id], max_new_tokens=3)


def test_infill_asks_in_psm_order(tokenizer: Tokenizer) -> None:
    model = lively(vocab_size=400)
    model.tokenizer = tokenizer
    prompt = tokenizer.encode_fim("def add(", "return a")
    assert model.infill("def add(", "return a", max_new_tokens=20) == model.generate(prompt, max_new_tokens=20)
    long = model.infill("a + b " * 100, " return" * 100, max_new_tokens=20)
    assert isinstance(long, str)


def test_cropping_keeps_what_is_near_the_gap() -> None:
    prefix, suffix = list(range(100, 120)), list(range(200, 230))
    prompt = [2, *prefix, 4, *suffix, 3]
    assert crop_infill(prompt, 4, 53) == prompt
    assert crop_infill(prompt, 4, 23) == [2, *prefix[-10:], 4, *suffix[:10], 3]
    assert crop_infill([2, 100, 4, *suffix, 3], 4, 23) == [2, 100, 4, *suffix[:19], 3]
    assert crop_infill([2, *prefix, 4, 200, 3], 4, 13) == [2, *prefix[-9:], 4, 200, 3]
    with pytest.raises(MifyError, match="lower max_new_tokens"):
        crop_infill(prompt, 4, 4)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([[]], {}, "request 0: the prompt is empty"),
        ([[1], [199]], {}, "request 1: the prompt contains a token outside 0 to 198"),
        ([[-1]], {}, "outside"),
        ([[1] * 64], {}, "the context of mify-tiny is 64"),
        ([[1]], {"temperature": -1}, "temperature"),
        ([[1]], {"temperature": float("nan")}, "temperature"),
        ([[1]], {"top_p": 0}, "top_p"),
        ([[1]], {"top_k": -1}, "top_k"),
        ([[1]], {"max_new_tokens": -1}, "max_new_tokens"),
    ],
)
def test_mistakes_are_named(prompts: list[list[int]], options: dict[str, Any], words: str) -> None:
    with pytest.raises(MifyError, match=words):
        generate(lively(), prompts, **options)


def test_nothing_asked_nothing_made() -> None:
    assert generate(lively(), []) == []
    assert generate(lively(), [[1]], max_new_tokens=0) == [[]]


def test_command_line(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from mify.cli.app import app

    model = lively(vocab_size=400)
    model.tokenizer = tokenizer
    monkeypatch.setitem(sys.modules, "mify.loading", SimpleNamespace(load=lambda path, **_: model))
    result = CliRunner().invoke(app, ["generate", "folder", "def add(a", "--max-new-tokens", "9"])
    assert result.exit_code == 0, result.output
    assert result.stdout == model.generate("def add(a", max_new_tokens=9) + "\n"

    (tmp_path / "before.py").write_text("def add(")
    (tmp_path / "after.py").write_text("return a")
    files = [str(tmp_path / "before.py"), str(tmp_path / "after.py")]
    result = CliRunner().invoke(app, ["generate", "folder", "--fim", *files, "--max-new-tokens", "9"])
    assert result.stdout == model.infill("def add(", "return a", max_new_tokens=9)

    for arguments in (["folder"], ["folder", "x", "--fim", *files], ["folder", "--fim", files[0], "absent.py"]):
        result = CliRunner().invoke(app, ["generate", *arguments])
        assert result.exit_code == 2
        assert "Traceback" not in result.output
    (tmp_path / "after.py").write_bytes(b"\xff\xfe")
    assert CliRunner().invoke(app, ["generate", "folder", "--fim", *files]).exit_code == 2


def test_the_command_shows_tokens_as_they_are_made_until_it_is_interrupted(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from mify.cli.app import app
    from mify.engine import Engine

    model = lively(vocab_size=400)
    model.tokenizer = tokenizer
    monkeypatch.setitem(sys.modules, "mify.loading", SimpleNamespace(load=lambda path, **_: model))
    whole = model.generate("def add(a", max_new_tokens=30)
    step, steps = Engine.step, iter(range(100))

    def interrupted(engine: Engine) -> None:
        if next(steps) == 12:
            raise KeyboardInterrupt
        step(engine)

    monkeypatch.setattr(Engine, "step", interrupted)
    result = CliRunner().invoke(app, ["generate", "folder", "def add(a", "--max-new-tokens", "30"])
    assert result.exit_code == 130
    assert 0 < len(result.stdout) < len(whole)
    assert whole.startswith(result.stdout.removesuffix("\n"))
    assert not result.stderr


def test_ends_at_what_the_models_file_names() -> None:
    model = lively()
    free = generate(model, [[3, 1, 4]], max_new_tokens=8, stop_ids=())[0]
    remember_conventions(model, Conventions(eos_ids=(198, free[3])))
    assert generate(model, [[3, 1, 4]], max_new_tokens=8)[0] == free[: free.index(free[3])]
    assert generate(model, [[3, 1, 4]], max_new_tokens=8, stop_ids=())[0] == free
