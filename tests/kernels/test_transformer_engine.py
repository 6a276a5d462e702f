"""mify's calls to Transformer Engine, held to its public signatures by a stand-in (`te_stand_in`).

This is a contract test: the library itself is not run here, and stays unproven until it is, on a GPU.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import te_stand_in
import torch

from mify import fp8
from mify.config import Fp8Settings, model_config
from mify.errors import MifyError
from mify.kernels.gemm import fp8 as transformer_engine
from mify.model import Model


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    transformer_engine._engine.cache_clear()
    te_stand_in.install(monkeypatch)
    yield te_stand_in
    transformer_engine._engine.cache_clear()


def make_model(recipe: Any) -> Model:
    model = Model(model_config("mify-tiny", num_layers=1)).to(torch.bfloat16)
    fp8.to_fp8(model, Fp8Settings(recipe, "te", 0, 0, amax_history=8))
    return model


def step(model: Model, tokens: int = 20, **options: Any) -> torch.Tensor:
    ids = torch.arange(tokens)
    with fp8.microbatch(model, **options):
        out = model(ids, ids, torch.tensor([0, tokens], dtype=torch.int32), tokens)
    out.float().sum().backward()
    return out


def test_it_is_imported_in_one_file_only(checkout: Path) -> None:
    found = []
    for folder in ("kernels", "mify", "training", "bench"):
        for path in (checkout / folder).rglob("*.py"):
            if path.is_symlink() or "transformer_engine." not in path.read_text(encoding="utf-8"):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                    names += [a.value for a in node.args if isinstance(a, ast.Constant)]
                if any(str(name).startswith("transformer_engine.") for name in names):
                    found.append(path.name)
    assert set(found) == {"fp8.py"}


def test_recipes_are_made_with_arguments_they_have(engine: Any) -> None:
    delayed = transformer_engine.make_recipe("delayed", history=16, margin=1)
    assert (delayed.amax_history_len, delayed.margin, delayed.fp8_format) == (16, 1, engine.Format.E4M3)
    assert isinstance(transformer_engine.make_recipe("current", history=1, margin=0), engine.Float8CurrentScaling)
    assert isinstance(transformer_engine.make_recipe("block", history=1, margin=0), engine.Float8BlockScaling)


def test_a_training_step(engine: Any) -> None:
    model = make_model("current")
    plain = Model(model.config).to(torch.bfloat16)
    assert model.state_dict().keys() == plain.state_dict().keys()
    first = step(model, first=True)
    ids = torch.arange(20)
    expected = plain(ids, ids, torch.tensor([0, 20], dtype=torch.int32), 20)
    torch.testing.assert_close(first, expected, rtol=0.02, atol=0.02)
    second = step(model, first=False)
    assert torch.equal(first, second)
    assert all(parameter.grad is not None for parameter in model.parameters())
    linears = [values for name, values in engine.CALLS if name == "linear"]
    assert len(linears) == 14
    assert [values["first"] for values in linears] == [True] * 7 + [False] * 7
    assert all(values["in autocast"] and values["rows"] == 32 for values in linears)
    assert [name for name, _ in engine.CALLS].count("autocast") == 2  # once a forward pass
    fp8.end_step(model)
    with torch.inference_mode():
        model(ids, ids, torch.tensor([0, 20], dtype=torch.int32), 20)
    assert engine.CALLS[-1][1]["first"] is None


def test_delayed_scaling_goes_through_a_checkpoint(engine: Any) -> None:
    model = make_model("delayed")
    for _ in range(3):
        step(model, first=True)
        fp8.end_step(model)
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = [name for name in saved if ".fp8_" in name]
    assert len(names) == 7 * 4
    base = "model.layers.0.self_attn.q_proj.fp8_"
    assert saved[base + "history_fwd"].shape == (8, 3)
    assert (saved[base + "history_fwd"][:3, 0] > 0).all()
    other = make_model("delayed")
    other.load_state_dict(saved)
    fp8.state_was_loaded(other)
    for one, two in zip(fp8.fp8_layers(model), fp8.fp8_layers(other), strict=True):
        ours, theirs = (transformer_engine.read_state(layer.engine[0]) for layer in (one, two))
        assert ours.keys() == theirs.keys() == transformer_engine.STATE.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    fresh = make_model("delayed")
    fp8.state_was_loaded(fresh)  # nothing was there yet
    assert all(not transformer_engine.read_state(layer.engine[0]) for layer in fp8.fp8_layers(fresh))


def test_what_it_refuses_is_passed_on(engine: Any) -> None:
    assert transformer_engine.why_not("delayed") == ""
    assert "requires compute capability 9.0" in transformer_engine.why_not("block")
    with pytest.raises(MifyError, match=r"recipe block here: it refuses the recipe block: FP8 block scaled"):
        make_model("block")


def test_an_old_version_is_named(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delattr(sys.modules["transformer_engine.pytorch"], "autocast")
    assert "has no transformer_engine.pytorch.autocast" in transformer_engine.why_not()


def test_a_core_without_its_torch_extension_is_named(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", None)
    assert "cannot be loaded (ModuleNotFoundError" in transformer_engine.why_not()


def test_without_it_or_a_gpu_the_reason_is_said() -> None:
    reason = transformer_engine.why_not()
    assert reason in ("the package transformer-engine is not installed", "it needs a GPU, and torch finds none", "")


def test_the_stand_in_has_the_arguments_that_are_passed() -> None:
    signature = inspect.signature(te_stand_in.Linear.__init__).parameters
    assert {"in_features", "out_features", "bias", "params_dtype", "device"} <= signature.keys()
