"""LoRA: the same function and the same files as `peft`; runs that train, resume and are loaded with it merged."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mify.cli.app import app
from mify.config import model_config
from mify.errors import MifyError
from mify.export.hf import export_hf
from mify.export.weights import to_model
from mify.loading import load, open_weights
from mify.lora import AdaptedWeights, Adapter, LoraConfig, add_lora, lora_layers, merge_lora
from mify.model import Model

SHAPE = {"num_layers": 2, "hidden_size": 64, "ffn_size": 96, "vocab_size": 512, "context": 64}
IDS = [3, 400, 7, 7, 200, 11]


@pytest.fixture
def model() -> Model:
    return Model(model_config("mify-tiny", **SHAPE), seed=1).eval()


def trained(model: Model, config: LoraConfig) -> Model:
    """With corrections as if they had been trained."""
    add_lora(model, config, seed=2)
    generator = torch.Generator().manual_seed(3)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(0, 0.1, generator=generator)
    return model


@torch.no_grad()
def logits(model: Model) -> torch.Tensor:
    bounds = torch.tensor([0, len(IDS)], dtype=torch.int32)
    return model.logits(model(torch.tensor(IDS), torch.arange(len(IDS)), bounds, len(IDS)))


def test_it_starts_at_the_base_and_trains_nothing_else(model: Model) -> None:
    before = logits(model)
    config = LoraConfig(rank=4, targets=("q_proj", "down_proj"))
    add_lora(model, config, seed=5)
    assert torch.equal(logits(model), before)
    layers = lora_layers(model)
    assert sorted(layers) == [f"model.layers.{i}.{n}" for i in (0, 1) for n in ("mlp.down_proj", "self_attn.q_proj")]
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert training == {f"{name}.lora_{part}" for name in layers for part in "AB"}
    first, second = layers["model.layers.0.self_attn.q_proj"].lora_A, layers["model.layers.1.self_attn.q_proj"].lora_A
    assert first.abs().max() <= 1 / math.sqrt(64)
    assert not torch.equal(first, second)
    again = Model(model_config("mify-tiny", **SHAPE), seed=1)
    add_lora(again, config, seed=5)
    assert torch.equal(lora_layers(again)["model.layers.0.self_attn.q_proj"].lora_A, first)


def test_merged_it_computes_the_same(model: Model) -> None:
    trained(model, LoraConfig(rank=4, alpha=6))
    expected = logits(model)
    merge_lora(model)
    assert not lora_layers(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [LoraConfig(rank=4, alpha=6), LoraConfig(rank=3, alpha=5, targets=("v_proj", "gate_proj"), rank_stabilized=True)],
)
def test_peft_computes_the_same_from_our_files_and_we_from_its(
    model: Model, config: LoraConfig, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = export_hf(model, tmp_path / "base")
    trained(model, config)
    expected = logits(model)
    Adapter.of(model, config, str(base)).save(tmp_path / "ours")

    def theirs() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()

    found = peft.PeftModel.from_pretrained(theirs(), tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(found(torch.tensor([IDS])).logits[0], expected, rtol=1e-4, atol=1e-5)
        # As peft trains and writes one, with a scale of its own for one layer.
        made = peft.get_peft_model(theirs(), peft.LoraConfig(
            r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), task_type="CAUSAL_LM",
            use_rslora=config.rank_stabilized, alpha_pattern={"layers.1.self_attn.v_proj": 9}, init_lora_weights=False,
        ))  # fmt: skip
        made.save_pretrained(tmp_path / "theirs")
        wanted = made.eval()(torch.tensor([IDS])).logits[0]
    adapter = Adapter.load(tmp_path / "theirs")
    assert (adapter.config.rank, adapter.config.alpha, adapter.config.targets) == (
        config.rank, config.alpha, config.targets,
    )  # fmt: skip
    merged = to_model(AdaptedWeights(open_weights(base), adapter))
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-5)
    apart = load(base)
    add_lora(apart, adapter.config)
    adapter.put_into(apart)
    torch.testing.assert_close(logits(apart), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(load(tmp_path / "ours")), logits(to_model(AdaptedWeights(open_weights(base), Adapter.load(
        tmp_path / "ours")))))  # fmt: skip


def test_what_is_no_such_adapter_is_refused_by_name(model: Model, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = LoraConfig(rank=2, targets=("q_proj",))
    trained(model, config)
    adapter = Adapter.of(model, config)

    def changed(**values: Any) -> Path:
        adapter.save(tmp_path / "a")
        file = tmp_path / "a" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return tmp_path / "a"

    for values in ({"use_dora": True}, {"peft_type": "IA3"}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}):
        with pytest.raises(MifyError, match=next(iter(values))):
            Adapter.load(changed(**values))
    with pytest.raises(MifyError, match="which is not here"):
        open_weights(changed())
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    name = next(iter(tensors))
    for odd in (
        {k: v for k, v in tensors.items() if k != name},
        {"base_model.model.lm_head.lora_A.weight": torch.ones(1, 1)},
    ):
        save_file(odd, tmp_path / "a" / "adapter_model.safetensors")
        with pytest.raises(MifyError, match="lacks|no LoRA"):
            Adapter.load(tmp_path / "a")
    other = Model(model_config("mify-tiny", **SHAPE | {"hidden_size": 32}))
    with pytest.raises(MifyError, match="the base's"):
        AdaptedWeights(open_weights(export_hf(other, tmp_path / "other")), adapter)
    add_lora(other, config)
    with pytest.raises(MifyError, match=r"has A \(2, 64\)"):
        adapter.put_into(other)
    with pytest.raises(MifyError, match="lora.targets"):
        LoraConfig(targets=("lm_head",))
    with pytest.raises(MifyError, match="lora.rank"):
        LoraConfig(rank=0)


def test_a_run_trains_resumes_and_is_loaded_merged(tmp_path: Path) -> None:
    from mify.tokenizer import train_tokenizer
    from mify.training.config import load_recipe
    from mify.training.trainer import train

    tokenizer = train_tokenizer(["user assistant def add(a, b): return a + b\n"], 400)
    start = Model(model_config("mify-tiny", **SHAPE | {"context": 128}), seed=1)
    start.tokenizer = tokenizer
    base = export_hf(start, tmp_path / "base")
    lines = [
        json.dumps({"messages": [{"role": "user", "content": f"add {i}"}, {"role": "assistant", "content": "a + b"}]})
        for i in range(30)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))

    def run(name: str, *overrides: str) -> Any:
        return load_recipe("sft-2.5b", [
            "--data.sources.safety=none", "--data.sources.instructions.parts=none", "--data.conversations.stages=[]",
            f"--data.sources.instructions.path={tmp_path / 'chat.jsonl'}", f"--name={name}", "--steps=4",
            "--data.tokenizer=none", f"--folder={tmp_path}", f"--init.weights={base}",
            "--data.context=128", "--data.rows_per_step=2", "--data.micro_rows=none", "--schedule.warmup_steps=0",
            "--parallel.precision=fp32", "--parallel.compile=false", "--evaluation.held_out=none", "--lora.rank=4",
            "--parallel.activation_checkpointing=none", "--optimizer.learning_rate=1e-2", "--checkpoint.every_steps=2",
            *overrides,
        ])  # fmt: skip

    def quiet(step: int, steps: int, record: dict[str, Any]) -> None:
        """No progress."""

    whole = train(run("whole"), quiet)
    shutil.rmtree(train(run("cut"), quiet).checkpoint)  # what a kill before the last step leaves
    resumed = train(run("cut"), quiet)
    first, second = load(whole.checkpoint), load(resumed.checkpoint)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not lora_layers(first)
    assert torch.equal(first.head_weight, load(base).head_weight)
    assert not torch.equal(logits(first), logits(load(base)))
    out = tmp_path / "adapter"
    done = CliRunner().invoke(app, ["export", str(tmp_path / "whole"), "--to", "adapter", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert torch.equal(logits(load(out)), logits(first))
    # Another run goes on from it.
    branch = train(run("branch", f"--lora.adapter={out}", "--steps=1", "--optimizer.learning_rate=1e-12"), quiet)
    torch.testing.assert_close(logits(load(branch.checkpoint)), logits(first))
    with pytest.raises(MifyError, match=r"multiplies its correction of .* by 8, .* make it 16"):
        train(run("louder", f"--lora.adapter={out}", "--lora.alpha=64"), quiet)
    refused = CliRunner().invoke(app, ["export", str(base), "--to", "adapter", "--out", str(out)])
    assert refused.exit_code == 2
    with pytest.raises(MifyError, match="fp8"):
        run("x", "--parallel.precision=fp8")
