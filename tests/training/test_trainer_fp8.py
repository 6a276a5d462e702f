"""FP8 in the trainer: its state is in checkpoints, bit for bit; micro-batches change nothing; refusals say why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer_resume import assert_equal_ends, quiet, tensors
from toy import ToyStream, toy_config

from mify import fp8
from mify.config import Fp8Settings, model_config
from mify.errors import MifyError
from mify.model import Model
from mify.training import run_state
from mify.training.config import changed_keys
from mify.training.trainer import train

EMULATED = ("--precision=fp8-fp32", "--fp8.backend=emulation", "--fp8.first_layers=0", "--fp8.last_layers=1")


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "open_stream", ToyStream)


@pytest.mark.parametrize("recipe", ["delayed", "block"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, recipe: str) -> None:
    keys = (*EMULATED, f"--fp8.recipe={recipe}", "--fp8.amax_history=3", "--data.micro_rows=4")
    train(toy_config(tmp_path / "whole", *keys), quiet)
    with pytest.raises(_Killed):
        train(toy_config(tmp_path / "parts", *keys), _kill_in_step(7))
    result = train(toy_config(tmp_path / "parts", *keys), quiet)
    assert result.step == 12
    assert_equal_ends(tmp_path / "whole" / "toy", tmp_path / "parts" / "toy", tmp_path)
    stored = tensors(result.checkpoint, tmp_path)
    states = sorted(name for name in stored if ".fp8_" in name)
    assert len(states) == (14 if recipe == "delayed" else 0)  # seven layers, a history and a scale each
    for name in states:
        assert stored[name].isfinite().all()
        assert (stored[name] > 0).all(), name


class _Killed(Exception):
    """Ends a run amid a step: nothing is saved."""


def _kill_in_step(step: int) -> Any:
    def progress(at: int, steps: int, record: dict[str, Any]) -> None:
        if at == step:
            raise _Killed

    return progress


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    losses = []
    for rows in (8, 2):
        for cached in ("true", "false"):
            keys = (
                *EMULATED,
                "--steps=6",
                "--fp8.recipe=block",
                f"--data.micro_rows={rows}",
                f"--fp8.cache_weights={cached}",
            )
            losses.append(train(toy_config(tmp_path, *keys, f"--name=run-{rows}-{cached}"), quiet).loss)
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]
    # 1x128 blocks of tokens for the weight gradient fall elsewhere, so they round elsewhere.
    assert losses[0] == pytest.approx(losses[2], rel=0.02)


def test_bf16_activations_and_fp8_products(tmp_path: Path) -> None:
    keys = ("--precision=fp8", "--fp8.first_layers=0", "--fp8.last_layers=0", "--fp8.recipe=delayed", "--steps=4")
    result = train(toy_config(tmp_path, *keys, "--schedule.decay_steps=1"), quiet)
    assert result.loss is not None
    assert math.isfinite(result.loss)
    assert any(".fp8_history" in name for name in tensors(result.checkpoint, tmp_path))


def test_an_fp8_run_branches_from_one_without(tmp_path: Path) -> None:
    before = train(toy_config(tmp_path, "--steps=4", "--schedule.decay_steps=1"), quiet)
    keys = (*EMULATED, "--fp8.recipe=delayed", f"--init.state={before.checkpoint}", "--name=branch", "--steps=6")
    after = train(toy_config(tmp_path, *keys, "--schedule.decay_steps=1"), quiet)
    assert after.step == 6
    assert after.loss is not None
    assert math.isfinite(after.loss)


def test_an_evaluation_leaves_no_trace() -> None:
    model = Model(model_config("mify-tiny", num_layers=1))
    fp8.to_fp8(model, Fp8Settings(recipe="delayed", first_layers=0, last_layers=0))
    tokens = torch.arange(16)
    arguments = (tokens, tokens, torch.tensor([0, 16], dtype=torch.int32), 16)
    with torch.inference_mode():
        model(*arguments)
    assert all(not layer.get_buffer("fp8_amax").any() for layer in fp8.fp8_layers(model))
    with fp8.microbatch(model, first=True):
        model(*arguments).sum().backward()
    assert all(layer.get_buffer("fp8_amax")[1] > 0 for layer in fp8.fp8_layers(model))


def test_ranks_share_the_largest_values() -> None:
    model = Model(model_config("mify-tiny", num_layers=1))
    fp8.to_fp8(model, Fp8Settings(recipe="delayed", first_layers=0, last_layers=0))
    for layer in fp8.fp8_layers(model):
        layer.get_buffer("fp8_amax").copy_(torch.tensor([1.0, 2.0, 3.0]))
    fp8.end_step(model, lambda together: together.clamp_(min=2.0))  # the other rank saw 2 everywhere
    for layer in fp8.fp8_layers(model):
        assert (layer.get_buffer("fp8_scale") * 448).tolist() == pytest.approx([2, 2, 3])
        assert layer.ready


def test_which_layers_stay() -> None:
    model = Model(model_config("mify-tiny"))
    names = fp8.linear_names(model, Fp8Settings(keep=("*.o_proj", "model.layers.2.mlp.*")))
    assert names == [
        *(f"model.layers.1.self_attn.{name}_proj" for name in "qkv"),
        *(f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")),
        *(f"model.layers.2.self_attn.{name}_proj" for name in "qkv"),
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("--precision=fp9",), "parallel.precision = 'fp9' is not known"),
        (("--precision=fp8", "--fp8.recipe=hourly"), "fp8.recipe = 'hourly' is not known"),
        (("--precision=fp8", "--fp8.recipe=delayed", "--parallel.compile=true"), "does not go with fp8.recipe"),
        (("--precision=fp8-fp32", "--fp8.backend=te"), "computes on bf16"),
        (("--precision=fp8", "--fp8.backend=te", "--fp8.recipe=delayed", "--parallel.activation_checkpointing=full"),
         "runs a layer twice"),
        (("--fp8.first_layers=-1",), "fp8.first_layers = -1"),
    ],
)  # fmt: skip
def test_what_the_configuration_refuses(tmp_path: Path, keys: tuple[str, ...], message: str) -> None:
    with pytest.raises(MifyError, match=message):
        toy_config(tmp_path, *keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("--fp8.backend=te",), "transformer-engine is not installed"),
        (("--fp8.backend=torch",), "recipe block here: on a CPU"),
        (("--fp8.first_layers=2",), "no linear layer is left"),
        (("--fp8.first_layers=0", "--model.hidden_size=40"), "40 → 32; FP8 products take multiples of 16"),
    ],
)
def test_what_a_run_refuses(tmp_path: Path, keys: tuple[str, ...], message: str) -> None:
    with pytest.raises(MifyError, match=message):
        train(toy_config(tmp_path, "--precision=fp8", *keys), quiet)


def test_runs_from_before_fp8_go_on(tmp_path: Path) -> None:
    new = toy_config(tmp_path).to_dict()
    old = {key: value for key, value in new.items() if key != "fp8"}
    assert changed_keys(old, new) == []
    delayed = toy_config(tmp_path, "--precision=fp8", "--fp8.recipe=delayed").to_dict()
    block = toy_config(tmp_path, "--precision=fp8").to_dict()
    assert changed_keys(block, delayed) == ["fp8.recipe"]
    assert changed_keys(new, delayed) == []


def test_delayed_scaling_does_not_compile_and_says_so() -> None:
    model = Model(model_config("mify-tiny", num_layers=1))
    fp8.to_fp8(model, Fp8Settings(recipe="delayed", first_layers=0, last_layers=0))
    linear = torch.compile(model.get_submodule("model.layers.0.mlp.gate_proj"), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="does not let a compiled backward"):
        linear(torch.randn(16, 192))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["block", "current"])
def test_layers_compile_whole_and_give_the_same_bits(recipe: Any) -> None:
    torch._dynamo.reset()
    ids = torch.arange(64)
    results = []
    for compiled in (False, True):
        model = Model(model_config("mify-tiny", num_layers=1))
        fp8.to_fp8(model, Fp8Settings(recipe, "emulation", 0, 0))
        if compiled:
            model.model.layers[0].compile(fullgraph=True, backend="aot_eager")
        for first in (True, False):
            with fp8.microbatch(model, first=first):
                out = model(ids, ids, torch.tensor([0, 64], dtype=torch.int32), 64)
            out.sum().backward()
        fp8.end_step(model)
        results.append([out.detach(), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
