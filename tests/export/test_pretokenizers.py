"""Every pre-tokenizer in the table against the real llama.cpp, and the refusal of all others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mify.errors import MifyError
from mify.export import gguf_vocab, llama_cpp, pretokenizers
from mify.export.conventions import Conventions
from mify.export.gguf import GgufWeights, export_gguf
from mify.export.hf import HfWeights, export_hf
from mify.export.weights import conventions_of, remember_conventions
from mify.model import Model
from mify.tokenizer import Tokenizer

needs_llama_cpp = pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")


def train(known: pretokenizers.PreTokenizer, corpus: list[str]) -> Tokenizer:
    """A small tokenizer that splits as `known`; its special token stands last, as in most models."""
    import json

    from tokenizers import Tokenizer as HfTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    definition = json.loads(HfTokenizer(models.BPE()).to_str())
    definition["pre_tokenizer"] = pretokenizers.hugging_face(known)
    inner = HfTokenizer.from_str(json.dumps(definition))
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    inner.train_from_iterator(corpus, trainer)
    inner.add_special_tokens(["<|endoftext|>"])
    definition = json.loads(inner.to_str())
    definition["model"]["ignore_merges"] = known.ignore_merges
    return Tokenizer(definition)


@needs_llama_cpp
@pytest.mark.parametrize("known", pretokenizers.KNOWN, ids=lambda known: known.name)
def test_llama_cpp_splits_as_the_table_says(
    tmp_path: Path,
    make_model: Callable[..., Model],
    corpus: list[str],
    hard_texts: list[str],
    known: pretokenizers.PreTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(num_layers=1)
    model.tokenizer = train(known, corpus)
    monkeypatch.setattr(pretokenizers, "detect", lambda *_: known)  # so that aliases are written as well
    export_gguf(model, tmp_path / "m.gguf")
    with llama_cpp.LlamaCpp(tmp_path / "m.gguf") as server:
        for text in hard_texts:
            if "\x00" not in text and "<|endoftext|>" not in text:
                assert server.tokenize(text) == model.tokenizer.encode(text), text


@pytest.mark.parametrize("known", pretokenizers.KNOWN, ids=lambda known: known.name)
def test_a_pre_tokenizer_is_found_again(corpus: list[str], known: pretokenizers.PreTokenizer) -> None:
    found = pretokenizers.detect(train(known, corpus).definition, "t")
    assert (found.splits, found.ignore_merges) == (known.splits, known.ignore_merges)
    assert pretokenizers.by_name(found.name, "t") is found


def test_our_own_tokenizer_is_qwen2(tokenizer: Tokenizer) -> None:
    assert pretokenizers.detect(tokenizer.definition, "t").name == "qwen2"


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (BYTES, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]}, "smollm"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {
                            "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
                            r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                        },
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    {**BYTES, "use_regex": False},
                ],
            },
            "qwen2",
        ),
    ],
)
def test_the_spellings_of_others_are_recognized(pre_tokenizer: dict[str, Any], name: str) -> None:
    definition = {"pre_tokenizer": pre_tokenizer, "model": {}}
    assert pretokenizers.detect(definition, "t").name == name


@pytest.mark.parametrize(
    ("pre_tokenizer", "named"),
    [
        (None, "no ByteLevel"),
        ({"type": "Whitespace"}, "Whitespace"),
        ({"type": "Metaspace", "replacement": "▁"}, "Metaspace"),
        ({**BYTES, "add_prefix_space": True}, "add_prefix_space"),
        (
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False},
                    {**BYTES, "use_regex": False},
                ],
            },
            r"\\w\+",
        ),
        ({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False}, BYTES]}, "Digits"),
    ],
)
def test_other_patterns_are_refused_by_name(pre_tokenizer: dict[str, Any] | None, named: str) -> None:
    with pytest.raises(MifyError, match=named):
        pretokenizers.detect({"pre_tokenizer": pre_tokenizer, "model": {}}, "t")


def test_unknown_normalizers_and_models_are_refused(tokenizer: Tokenizer) -> None:
    conventions = Conventions.of(tokenizer)
    lower = {**tokenizer.definition, "normalizer": {"type": "Lowercase"}}
    with pytest.raises(MifyError, match="Lowercase"):
        gguf_vocab.from_tokenizer_json(lower, 704, conventions, "t")
    composed = {**tokenizer.definition, "normalizer": {"type": "NFC"}}
    assert "NFC" in gguf_vocab.from_tokenizer_json(composed, 704, conventions, "t").notes[0]
    unigram = {**tokenizer.definition, "model": {"type": "Unigram"}}
    with pytest.raises(MifyError, match="Unigram"):
        gguf_vocab.from_tokenizer_json(unigram, 704, conventions, "t")
    with pytest.raises(MifyError, match="has id 699, but the model has 699 embedding rows"):
        gguf_vocab.from_tokenizer_json(tokenizer.definition, 699, conventions, "t")


@needs_llama_cpp
def test_a_begin_of_text_token_goes_everywhere(
    tmp_path: Path, make_model: Callable[..., Model], corpus: list[str]
) -> None:
    """Llama-3's way: a post-processor puts begin-of-text before every prompt."""
    transformers = pytest.importorskip("transformers")
    known = pretokenizers.by_name("llama-bpe", "t")
    definition = train(known, corpus).definition
    begin = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [600], "tokens": ["<|endoftext|>"]}},
    }
    model = make_model(num_layers=1)
    model.tokenizer = Tokenizer(definition)
    remember_conventions(model, Conventions(bos_id=600, eos_ids=(600,), add_bos=True))
    expected = [600, *model.tokenizer.encode("x = 1")]

    export_gguf(model, tmp_path / "m.gguf")
    with llama_cpp.LlamaCpp(tmp_path / "m.gguf") as server:
        assert server.tokenize("x = 1", add_special=True) == expected
        assert server.tokenize("x = 1") == expected[1:]
    export_hf(GgufWeights(tmp_path / "m.gguf"), tmp_path / "hf")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")("x = 1")["input_ids"] == expected
    assert HfWeights(tmp_path / "hf").conventions == conventions_of(model)
