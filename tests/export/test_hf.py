"""Hugging Face folders against plain `transformers` and `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mify.errors import MifyError
from mify.export.hf import HfWeights, export_hf, import_hf
from mify.export.weights import conventions_of
from mify.model import Model
from mify.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def hf_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_computes_the_same_logits(
    tmp_path: Path,
    make_model: Callable[..., Model],
    logits: Callable,
    close: Callable,
    tokenizer: Tokenizer,
    tied: bool,
) -> None:
    model = make_model(tie_embeddings=tied)
    export_hf(model, tmp_path / "hf")
    ids = tokenizer.encode("import os\n\nclass Parser:\n    def read(self, path):\n" * 4)[:120]
    assert close(hf_logits(tmp_path / "hf", ids), logits(model, ids))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert loaded.dtype == torch.float32
    assert loaded.config.architectures == ["LlamaForCausalLM"]


def test_transformers_tokenizes_the_same(
    tmp_path: Path, make_model: Callable[..., Model], tokenizer: Tokenizer, hard_texts: list[str]
) -> None:
    export_hf(make_model(), tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in hard_texts:
        if "<|" not in text:
            assert theirs(text)["input_ids"] == tokenizer.encode(text)
            assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs("a<|fim_prefix|>b")["input_ids"] == [
        *tokenizer.encode("a"),
        tokenizer.fim_prefix_id,
        *tokenizer.encode("b"),
    ]
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eot_id, tokenizer.pad_id)
    assert theirs.convert_tokens_to_ids(theirs.fim_middle_token) == tokenizer.fim_middle_id
    assert theirs.model_max_length == 256


def test_generation_stops_at_end_of_text_and_end_of_turn(
    tmp_path: Path, make_model: Callable[..., Model], tokenizer: Tokenizer
) -> None:
    export_hf(make_model(), tmp_path / "hf")
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    assert generation.eos_token_id == [tokenizer.eot_id, tokenizer.im_end_id]
    assert generation.pad_token_id == tokenizer.pad_id


def test_import_gives_back_the_same_model(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    model = make_model(tie_embeddings=False)
    export_hf(model, tmp_path / "hf", max_shard_bytes=60_000)
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    again = import_hf(tmp_path / "hf")
    assert again.config == model.config
    assert again.tokenizer is not None
    assert model.tokenizer is not None
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert conventions_of(again) == conventions_of(model)
    for (name, tensor), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_shards_load_in_transformers(
    tmp_path: Path, make_model: Callable[..., Model], logits: Callable, close: Callable
) -> None:
    model = make_model()
    export_hf(model, tmp_path / "hf", max_shard_bytes=60_000)
    ids = list(range(130, 190))
    assert close(hf_logits(tmp_path / "hf", ids), logits(model, ids))


def test_same_model_gives_the_same_bytes(
    tmp_path: Path, make_model: Callable[..., Model], folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    export_hf(make_model(), tmp_path / "one")
    export_hf(make_model(), tmp_path / "two")
    export_hf(HfWeights(tmp_path / "one"), tmp_path / "three")
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two") == folder_bytes(tmp_path / "three")


def test_export_in_bfloat16_rounds_once(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    model = make_model()
    export_hf(model, tmp_path / "hf", dtype=torch.bfloat16)
    stored = HfWeights(tmp_path / "hf")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(stored.tensor(name), model.state_dict()[name].bfloat16())
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "fields",
    [
        {"head_dim": 40, "tie_word_embeddings": True},
        {"num_key_value_heads": 4},
        {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ],
)
def test_models_of_transformers_are_imported(
    tmp_path: Path, logits: Callable, close: Callable, fields: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    shape = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(shape | fields))).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = import_hf(tmp_path / "theirs")
    assert ours.tokenizer is None
    ids = list(range(0, 300, 5))
    with torch.no_grad():
        assert close(theirs(torch.tensor([ids])).logits[0], logits(ours, ids))


def test_mistral_without_a_window_is_llama(tmp_path: Path, logits: Callable, close: Callable) -> None:
    torch.manual_seed(4)
    config = transformers.MistralConfig(
        vocab_size=300, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, sliding_window=None,
    )  # fmt: skip
    theirs = transformers.MistralForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ids = list(range(0, 300, 5))
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    assert close(expected, logits(import_hf(tmp_path / "theirs"), ids))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model_type", "qwen2", "qwen2"),
        ("model_type", None, "model_type"),
        ("attention_bias", True, "attention_bias"),
        ("mlp_bias", True, "mlp_bias"),
        ("hidden_act", "gelu", "gelu"),
        ("sliding_window", 128, "sliding_window"),
        ("rope_parameters", {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}, "llama3"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}, "linear"),
        ("quantization_config", {"quant_method": "awq"}, "quantization_config"),
        ("hidden_size", None, "hidden_size"),
        ("hidden_size", 32, "config.json asks for"),
        ("num_hidden_layers", 3, "lacks 9 of"),
        ("num_key_value_heads", 3, "num_kv_heads"),
    ],
)
def test_what_is_not_llama_shaped_is_refused_by_name(
    tmp_path: Path, make_model: Callable[..., Model], key: str, value: Any, named: str
) -> None:
    export_hf(make_model(), tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    config[key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(MifyError, match=named):
        import_hf(tmp_path / "hf")


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    model = make_model(vocab_size=690)
    with pytest.raises(MifyError, match="700 tokens, the model 690 embedding rows"):
        export_hf(model, tmp_path / "hf")
    model.tokenizer = None
    export_hf(model, tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(make_model().require_tokenizer().definition))
    with pytest.raises(MifyError, match="700 tokens, the model 690 embedding rows"):
        import_hf(tmp_path / "hf")


def test_a_bias_in_the_weights_is_refused_by_name(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    from safetensors.torch import load_file, save_file

    export_hf(make_model(), tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(128)
    save_file(tensors, file)
    with pytest.raises(MifyError, match=r"q_proj\.bias, a bias"):
        import_hf(tmp_path / "hf")


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -1])
def test_truncated_weights_are_refused(tmp_path: Path, make_model: Callable[..., Model], keep: int) -> None:
    export_hf(make_model(), tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(MifyError, match=r"model\.safetensors"):
        import_hf(tmp_path / "hf")


def test_missing_parts_are_named(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    export_hf(make_model(), tmp_path / "hf", max_shard_bytes=60_000)
    victim = sorted((tmp_path / "hf").glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(MifyError, match=victim.name):
        import_hf(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors.index.json").unlink()
    with pytest.raises(MifyError, match="neither"):
        import_hf(tmp_path / "hf")
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(MifyError, match="pickle"):
        import_hf(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text("{")
    with pytest.raises(MifyError, match=r"config\.json is not valid JSON"):
        import_hf(tmp_path / "hf")


def test_a_failed_export_leaves_what_was_there(
    tmp_path: Path, make_model: Callable[..., Model], folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    export_hf(make_model(), tmp_path / "hf")
    before = folder_bytes(tmp_path / "hf")
    weights = HfWeights(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").write_bytes(before["model.safetensors"][:-10])
    with pytest.raises(MifyError):
        export_hf(weights, tmp_path / "hf")
    assert sorted(before) == sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
