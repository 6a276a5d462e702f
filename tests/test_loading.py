"""`mify.load`: every kind of thing that holds a model, and every way it can be broken."""

from __future__ import annotations

import inspect
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

import mify
from mify.config import ModelConfig
from mify.errors import MifyError
from mify.export.hf import export_hf
from mify.files import sha256_file, write_json
from mify.loading import load, open_weights
from mify.model import Model
from mify.tokenizer import Tokenizer, train_tokenizer
from mify.training.checkpoint import Checkpoint, Checkpointer, tensors_of
from mify.training.parallel import World

CPU = torch.device("cpu")
CONFIG = ModelConfig("toy", 2, 32, 2, 1, 16, 48, 400, 64, tie_embeddings=True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([inspect.getsource(inspect)[:20_000]], 400)


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A run folder with checkpoints of steps 1 and 2, as the trainer writes them."""
    tokenizer.save(tmp_path / "tokenizer")
    folder = tmp_path / "run"
    world = World(0, 1, 1, CPU)
    checkpointer = Checkpointer(folder, world)
    for step in (1, 2):
        model = Model(CONFIG, seed=step)
        optimizer = torch.optim.AdamW(model.parameters())
        checkpointer.save(
            Checkpoint(
                step,
                tensors_of(model, optimizer, world),
                {},
                documents={"model.json": CONFIG.to_dict()},
                files={"tokenizer.json": tmp_path / "tokenizer" / "tokenizer.json"},
            )
        )
    write_json(folder / "config.json", {"name": "toy"})
    return folder


def same(model: Model, seed: int) -> bool:
    pairs = zip(model.state_dict().values(), Model(CONFIG, seed=seed).state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_run_gives_its_newest_checkpoint(run: Path, tokenizer: Tokenizer) -> None:
    model = mify.load(run)
    assert same(model, 2)
    assert model.config == CONFIG
    assert not model.training
    assert model.require_tokenizer().fingerprint == tokenizer.fingerprint
    assert isinstance(model.generate("def f(", max_new_tokens=3), str)


def test_a_checkpoint_can_be_named(run: Path) -> None:
    assert same(load(run / "checkpoints" / "step-00000001"), 1)


def test_latest_decides(run: Path) -> None:
    (run / "latest").write_text("checkpoints/step-00000001\n")
    assert same(load(run), 1)
    (run / "latest").unlink()
    assert same(load(run), 2)


def test_dtype_and_device(run: Path) -> None:
    model = load(run, dtype=torch.bfloat16, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    expected = Model(CONFIG, seed=2).head_weight.bfloat16()
    assert torch.equal(model.head_weight, expected)


def test_parameters_are_trainable_and_not_shared(run: Path) -> None:
    one, two = load(run), load(run)
    assert all(parameter.requires_grad for parameter in one.parameters())
    with torch.no_grad():
        one.head_weight.zero_()
    assert same(two, 2)
    assert same(load(run), 2)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "no manifest", "model.json"])
def test_a_damaged_checkpoint_is_passed_over_in_favour_of_the_one_before(
    run: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest = run / "checkpoints" / "step-00000002"
    victim = next(newest.glob("dcp/*.distcp"))
    if damage == "flip":
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    elif damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "remove":
        victim.unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "model.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert same(load(run), 1)
    assert "step-00000002" in caplog.text
    with pytest.raises(MifyError, match="step-00000002"):
        load(newest)
    shutil.rmtree(run / "checkpoints" / "step-00000001")
    with pytest.raises(MifyError, match="no checkpoint of .* is whole"):
        load(run)


def reseal(folder: Path, name: str) -> None:
    """Makes the manifest agree with a file that the test changed on purpose."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_an_unknown_version_is_refused(run: Path) -> None:
    newest = run / "checkpoints" / "step-00000002"
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(MifyError, match=r"version 1 \(found mify-checkpoint, 99\)"):
        load(newest)
    (newest / "manifest.json").write_text("[1]")
    with pytest.raises(MifyError, match="mify-checkpoint"):
        load(newest)


def test_a_model_json_of_another_model_is_refused(run: Path) -> None:
    newest = run / "checkpoints" / "step-00000002"
    (newest / "model.json").write_text(json.dumps(CONFIG.to_dict() | {"ffn_size": 50}))
    reseal(newest, "model.json")
    with pytest.raises(MifyError, match=r"gate_proj\.weight is of shape \(48, 32\)"):
        load(newest)
    (newest / "model.json").write_text(json.dumps(CONFIG.to_dict() | {"num_layers": 3}))
    reseal(newest, "model.json")
    with pytest.raises(MifyError, match=r"layers\.2\..* is absent"):
        load(newest)


def test_a_tokenizer_of_another_model_is_refused(run: Path) -> None:
    newest = run / "checkpoints" / "step-00000002"
    definition = json.loads((newest / "tokenizer.json").read_text())
    definition["model"]["vocab"]["zzzz"] = 400
    (newest / "tokenizer.json").write_text(json.dumps(definition))
    reseal(newest, "tokenizer.json")
    with pytest.raises(MifyError, match="401 tokens, the model 400 embedding rows"):
        load(newest)


def test_unreadable_metadata_is_refused(run: Path) -> None:
    newest = run / "checkpoints" / "step-00000002"
    (newest / "dcp" / ".metadata").write_bytes(b"\x80\x04nonsense")
    reseal(newest, "dcp/.metadata")
    with pytest.raises(MifyError, match="no readable metadata"):
        load(newest)


def test_a_hugging_face_folder_and_a_gguf_file(run: Path, tmp_path: Path) -> None:
    model = load(run)
    export_hf(open_weights(run), tmp_path / "hf")
    assert same(load(tmp_path / "hf"), 2)
    gguf = pytest.importorskip("mify.export.gguf")
    gguf.export_gguf(model, tmp_path / "m.gguf")
    assert same(load(str(tmp_path / "m.gguf")), 2)


def test_a_run_whose_weights_are_in_bfloat16_stays_so(tmp_path: Path) -> None:
    world = World(0, 1, 1, CPU)
    model = Model(CONFIG).bfloat16()
    Checkpointer(tmp_path, world).save(
        Checkpoint(1, tensors_of(model, None, world), {}, documents={"model.json": CONFIG.to_dict()})
    )
    weights = open_weights(tmp_path)
    assert weights.tokenizer is None
    assert weights.dtype("model.norm.weight") == torch.bfloat16
    assert torch.equal(weights.tensor("model.norm.weight"), model.state_dict()["model.norm.weight"])


def test_what_is_no_model_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(MifyError, match="a name on a hub is downloaded first"):
        load("some-org/Some-Model-1.5B")
    with pytest.raises(MifyError, match="holds no model"):
        load(tmp_path)
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    with pytest.raises(MifyError, match=r"give the file itself: .*weights\.gguf"):
        load(tmp_path)
    with pytest.raises(MifyError, match="truncated or damaged"):
        load(tmp_path / "weights.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(MifyError, match="give the folder"):
        load(tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MifyError, match="is no GGUF file"):
        load(tmp_path / "notes.txt")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(MifyError, match="has no checkpoint yet"):
        load(tmp_path)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MifyError, match="model_type None"):
        load(tmp_path)
