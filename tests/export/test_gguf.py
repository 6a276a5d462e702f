"""GGUF files against a real llama.cpp (`xllamacpp`) and against `gguf`'s reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mify.errors import MifyError
from mify.export.conventions import Conventions
from mify.export.gguf import GgufWeights, export_gguf, import_gguf, round_float32
from mify.export.hf import HfWeights, export_hf
from mify.export.weights import conventions_of, remember_conventions
from mify.model import Model
from mify.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("mify.export.llama_cpp")
needs_llama_cpp = pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")

PROMPT = "import os\n\nclass Parser:\n    def read(self, path):\n        return os.path.join(path, '123')\n"


@needs_llama_cpp
@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": False, "head_dim": 16}, {"num_kv_heads": 1}])
def test_llama_cpp_decodes_the_same_greedy_tokens(
    tmp_path: Path, make_model: Callable[..., Model], greedy: Callable, tokenizer: Tokenizer, fields: dict
) -> None:
    model = make_model(seed=1, **fields)
    assert export_gguf(model, tmp_path / "m.gguf") == []
    ids = tokenizer.encode(PROMPT)
    expected = greedy(model, ids, 40)
    with llama_cpp.LlamaCpp(tmp_path / "m.gguf") as server:
        assert server.greedy(ids, 40) == expected
        assert server.greedy(PROMPT, 40) == expected


@needs_llama_cpp
def test_llama_cpp_computes_the_same_log_probabilities(
    tmp_path: Path, make_model: Callable[..., Model], logits: Callable, tokenizer: Tokenizer
) -> None:
    model = make_model()
    export_gguf(model, tmp_path / "m.gguf")
    ids = tokenizer.encode(PROMPT)
    expected = torch.log_softmax(logits(model, ids)[-1].double(), -1)
    with llama_cpp.LlamaCpp(tmp_path / "m.gguf") as server:
        found = server.log_probabilities(ids)
    assert len(found) == 704
    assert max(abs(found[token] - float(expected[token])) for token in found) < 5e-5


@needs_llama_cpp
def test_llama_cpp_tokenizes_the_same(
    tmp_path: Path, make_model: Callable[..., Model], tokenizer: Tokenizer, hard_texts: list[str], corpus: list[str]
) -> None:
    export_gguf(make_model(), tmp_path / "m.gguf")
    special = tokenizer.special
    with llama_cpp.LlamaCpp(tmp_path / "m.gguf") as server:
        for text in [*hard_texts, corpus[0]]:
            if "\x00" not in text:  # llama.cpp's server takes C strings
                assert server.tokenize(text) == tokenizer.encode(text), text
                assert server.detokenize(server.tokenize(text)) == text
        # A special token's name is text, unless the caller says otherwise; nothing is put before a prompt.
        assert server.tokenize("<|im_start|>x<|fim_pad|>", parse_special=True, add_special=True) == [
            special["<|im_start|>"],
            *tokenizer.encode("x"),
            special["<|fim_pad|>"],
        ]


@needs_llama_cpp
def test_infill_of_llama_cpp_is_our_fim_prompt(
    tmp_path: Path, make_model: Callable[..., Model], greedy: Callable, tokenizer: Tokenizer
) -> None:
    model = make_model(seed=2)
    export_gguf(model, tmp_path / "m.gguf")
    prefix, suffix = "def area(r):\n    return ", "\n\nprint(area(2))\n"
    prompt = tokenizer.encode_fim(prefix, suffix)
    with llama_cpp.LlamaCpp(tmp_path / "m.gguf") as server:
        answer = server.infill(prefix, suffix, 8)
        assert server.tokenize(answer["prompt"], parse_special=True) == prompt
        assert answer["tokens"] == greedy(model, prompt, len(answer["tokens"]))


@pytest.mark.parametrize("tied", [True, False])
def test_import_gives_back_the_same_model(
    tmp_path: Path, make_model: Callable[..., Model], hard_texts: list[str], tokenizer: Tokenizer, tied: bool
) -> None:
    model = make_model(tie_embeddings=tied)
    export_gguf(model, tmp_path / "m.gguf")
    again = import_gguf(tmp_path / "m.gguf")
    assert again.config == model.config
    assert conventions_of(again) == conventions_of(model)
    for (name, tensor), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    found = again.require_tokenizer()
    assert found.special == tokenizer.special
    for text in hard_texts:
        assert found.encode(text) == tokenizer.encode(text)
        assert found.decode(found.encode(text)) == text


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_rounds_once_and_keeps_norms_in_f32(
    tmp_path: Path, make_model: Callable[..., Model], dtype: str, torch_dtype: torch.dtype
) -> None:
    model = make_model()
    export_gguf(model, tmp_path / "m.gguf", dtype)
    stored = GgufWeights(tmp_path / "m.gguf")
    for name, tensor in model.state_dict().items():
        expected = tensor if tensor.dim() == 1 else tensor.to(torch_dtype)
        assert stored.dtype(name) == expected.dtype
        assert torch.equal(stored.tensor(name), expected), name


@pytest.mark.parametrize(("dtype", "bound"), [("q8_0", 0.006), ("q6_k", 0.02), ("q4_k_m", 0.08), ("q2_k", 0.3)])
def test_quantized_files_load_and_stay_near(
    tmp_path: Path, make_model: Callable[..., Model], dtype: str, bound: float
) -> None:
    if not llama_cpp.available() and dtype != "q8_0":
        pytest.skip("K-quants need xllamacpp")
    model = make_model(hidden_size=256, ffn_size=512, num_layers=1)
    export_gguf(model, tmp_path / "m.gguf", dtype)
    again = import_gguf(tmp_path / "m.gguf")
    for (name, tensor), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        error = (tensor - other).square().mean().sqrt() / tensor.square().mean().sqrt()
        assert error <= bound, name
    if llama_cpp.available():
        assert len(llama_cpp.greedy_tokens(tmp_path / "m.gguf", PROMPT, 4)) == 4


def test_same_model_gives_the_same_bytes_however_it_is_read(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    export_gguf(make_model(), tmp_path / "one.gguf")
    export_hf(make_model(), tmp_path / "hf")
    export_gguf(HfWeights(tmp_path / "hf"), tmp_path / "two.gguf")
    export_gguf(GgufWeights(tmp_path / "one.gguf"), tmp_path / "three.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "three.gguf").read_bytes()


def test_metadata_that_engines_and_editors_read(
    tmp_path: Path, make_model: Callable[..., Model], tokenizer: Tokenizer
) -> None:
    model = make_model()
    remember_conventions(model, Conventions(0, (0, 9), 1, chat_template="{{ messages[0].content }}"))
    export_gguf(model, tmp_path / "m.gguf", "q8_0")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.file_type": 7,
        "llama.context_length": 256,
        "llama.rope.freq_base": 5e4,
        "llama.vocab_size": 704,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.eot_token_id": 9,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.fim_pre_token_id": 2,
        "tokenizer.ggml.fim_mid_token_id": 3,
        "tokenizer.ggml.fim_suf_token_id": 4,
        "tokenizer.ggml.fim_pad_token_id": 5,
        "tokenizer.ggml.fim_rep_token_id": 6,
        "tokenizer.ggml.fim_sep_token_id": 7,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    assert {key: fields[key] for key in expected} == expected
    types = fields["tokenizer.ggml.token_type"]
    assert types[:128] == [3] * 128
    assert set(types[128:700]) == {1}
    assert types[700:] == [5] * 4
    assert conventions_of(import_gguf(tmp_path / "m.gguf")) == conventions_of(model)


def test_f16_refuses_what_it_cannot_hold(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    model = make_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(MifyError, match=r"layers\.0\.mlp\.up_proj\.weight has values beyond 65504"):
        export_gguf(model, tmp_path / "m.gguf", "f16")
    assert list(tmp_path.iterdir()) == []
    export_gguf(model, tmp_path / "m.gguf", "bf16")


def test_what_cannot_be_exported_is_refused(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    model = make_model()
    with pytest.raises(MifyError, match="unknown GGUF dtype 'q7'"):
        export_gguf(model, tmp_path / "m.gguf", "q7")
    model.tokenizer = None
    with pytest.raises(MifyError, match="has no tokenizer"):
        export_gguf(model, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 3, 20, 1000, 20_000, -64])
def test_truncated_files_are_refused(tmp_path: Path, make_model: Callable[..., Model], keep: int) -> None:
    export_gguf(make_model(), tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[:keep])
    with pytest.raises(MifyError, match=r"cut\.gguf"):
        import_gguf(tmp_path / "cut.gguf")


def _rewrite(source: Path, target: Path, changes: dict[str, object], drop_tensor: str = "") -> None:
    """Copies a GGUF file with metadata changed (None removes a key)."""
    reader = gguf.GGUFReader(source)
    architecture = changes.get("general.architecture", "llama")
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in changes:
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    for name, value in changes.items():
        if name == "general.architecture" or value is None:
            continue
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        add[type(value)](name, value)
    for tensor in reader.tensors:
        if tensor.name != drop_tensor:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"general.architecture": "qwen2"}, "architecture 'qwen2'"),
        ({"llama.rope.scaling.type": "linear"}, "rope.scaling.type"),
        ({"llama.expert_count": 8}, "expert_count"),
        ({"llama.rope.dimension_count": 16}, "rope.dimension_count"),
        ({"llama.block_count": None}, "block_count is missing"),
        ({"llama.block_count": 3}, "lacks blk.2"),
        ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv"),
        ({"llama.feed_forward_length": 100}, "ffn_gate.weight has shape"),
        ({"tokenizer.ggml.model": "llama"}, "SentencePiece"),
        ({"tokenizer.ggml.pre": "martian"}, "martian"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["q zzzz"]}, "q zzzz"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "2 tokens for 704"),
    ],
)
def test_what_is_not_llama_shaped_is_refused_by_name(
    tmp_path: Path, make_model: Callable[..., Model], changes: dict[str, object], named: str
) -> None:
    export_gguf(make_model(), tmp_path / "m.gguf")
    _rewrite(tmp_path / "m.gguf", tmp_path / "changed.gguf", changes)
    with pytest.raises(MifyError, match=named):
        import_gguf(tmp_path / "changed.gguf")


def test_a_missing_tensor_is_named(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    export_gguf(make_model(), tmp_path / "m.gguf")
    _rewrite(tmp_path / "m.gguf", tmp_path / "changed.gguf", {}, drop_tensor="blk.1.attn_k.weight")
    with pytest.raises(MifyError, match=r"lacks blk\.1\.attn_k\.weight"):
        import_gguf(tmp_path / "changed.gguf")


def test_gguf_to_hugging_face_and_back_keeps_the_chat_template(
    tmp_path: Path, make_model: Callable[..., Model]
) -> None:
    model = make_model()
    remember_conventions(model, Conventions(0, (9, 0), 1, chat_template="{{ bos_token }}hello"))
    export_gguf(model, tmp_path / "m.gguf")
    export_hf(GgufWeights(tmp_path / "m.gguf"), tmp_path / "hf")
    assert (tmp_path / "hf" / "chat_template.jinja").read_text() == "{{ bos_token }}hello"
    assert json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    export_gguf(HfWeights(tmp_path / "hf"), tmp_path / "again.gguf")
    again = conventions_of(import_gguf(tmp_path / "again.gguf"))
    assert again.chat_template == "{{ bos_token }}hello"
    assert again.eos_ids[0] == 9


def test_float32_comes_back_as_it_was_written() -> None:
    for value in (1e-5, 1e-6, 10_000.0, 1e6, 5e4, 0.1):
        assert round_float32(float(torch.tensor(value, dtype=torch.float32))) == value
