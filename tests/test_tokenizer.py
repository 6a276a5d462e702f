"""The tokenizer: fixed ids, text that is only text, equality with `tokenizers` and `transformers`, bad input."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from mify._core import packing
from mify.data.fim import boundary_between, pre_tokens
from mify.errors import MifyError
from mify.special_tokens import LANGUAGES, NUM_SPECIAL, language_token, special_tokens
from mify.tokenizer import QWEN2_PATTERN, Tokenizer, train_tokenizer

DESIGN = [
    "<|endoftext|>",
    "<|pad|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]


@pytest.fixture(scope="module")
def sources() -> list[str]:
    folder = Path(os.__file__).parent
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))[:60]]


@pytest.fixture(scope="module")
def tokenizer(sources: list[str]) -> Tokenizer:
    return train_tokenizer(sources[:40], 2048)


@pytest.fixture(scope="module")
def slow(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps({**tokenizer.definition, "added_tokens": []}))


def test_special_tokens_have_the_ids_of_the_design(tokenizer: Tokenizer) -> None:
    names = special_tokens()
    assert names[:16] == DESIGN
    assert names[16] == "<|lang:python|>"
    assert len(names) == len(set(names)) == NUM_SPECIAL == 128
    assert names[-1] == "<|spare_127|>"
    assert tokenizer.special == {name: index for index, name in enumerate(names)}
    ids = (tokenizer.eot_id, tokenizer.pad_id, tokenizer.fim_prefix_id, tokenizer.fim_middle_id)
    assert ids == (0, 1, 2, 3)
    assert (tokenizer.fim_suffix_id, tokenizer.im_start_id, tokenizer.im_end_id) == (4, 8, 9)
    assert language_token("python") == "<|lang:python|>"
    assert language_token("klingon") is None
    assert len(set(LANGUAGES)) == len(LANGUAGES)


def test_ids_of_special_tokens_do_not_depend_on_the_size(sources: list[str]) -> None:
    small, large = (train_tokenizer(sources[:5], size) for size in (384, 600))
    assert small.special == large.special
    assert (small.vocab_size, large.vocab_size) == (384, 600)


def test_names_of_special_tokens_in_text_are_text(tokenizer: Tokenizer) -> None:
    for name in special_tokens():
        ids = tokenizer.encode(f"a{name} b")
        assert min(ids) >= NUM_SPECIAL
        assert tokenizer.decode(ids) == f"a{name} b"


@pytest.mark.parametrize("size", [400, 3000])
def test_training_finds_the_merges_of_tokenizers(size: int, sources: list[str]) -> None:
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    theirs.decoder = tokenizers.decoders.ByteLevel()
    theirs.train_from_iterator(
        sources,
        tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special_tokens(),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    ours = train_tokenizer(sources, size, threads=2)
    assert ours.definition == json.loads(theirs.to_str())


def test_a_corpus_too_small_for_the_vocabulary_gives_what_it_has() -> None:
    assert train_tokenizer(["ab ab"], 1000).vocab_size == 384 + 2


def test_training_does_not_depend_on_order_or_threads(sources: list[str]) -> None:
    first = train_tokenizer(sources[:12], 700)
    again = train_tokenizer(reversed(sources[:12]), 700)
    assert first.definition == again.definition
    assert first.fingerprint == again.fingerprint


def test_encoding_equals_tokenizers_on_real_files(
    sources: list[str], tokenizer: Tokenizer, slow: tokenizers.Tokenizer
) -> None:
    assert tokenizer.native is not None
    expected = [encoding.ids for encoding in slow.encode_batch_fast(sources, add_special_tokens=False)]
    assert tokenizer.encode_batch(sources) == expected
    assert tokenizer.encode_batch(sources, threads=3) == expected


TEXTS = st.text(
    st.one_of(
        st.sampled_from(list("'sSlLrevdtmTRE  \n\r\t_#=(){}129éŉſ中🙂\u00a0\u3000\u0301\x0b\x0c\x85\u2028\u1680")),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=80,
)


@settings(max_examples=500, deadline=None)
@given(text=TEXTS)
def test_encoding_equals_tokenizers_on_any_text(text: str, tokenizer: Tokenizer, slow: tokenizers.Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert ids == slow.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


def test_long_pre_tokens_equal_tokenizers(tokenizer: Tokenizer, slow: tokenizers.Tokenizer) -> None:
    rng = random.Random(0)
    for alphabet in ("ab", "=", "= -", "self", "日本語"):
        for size in (63, 64, 65, 200, 5000):
            text = "".join(rng.choices(alphabet, k=size))
            assert tokenizer.encode(text) == slow.encode(text, add_special_tokens=False).ids


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_pre_tokens_are_those_of_the_pattern(text: str) -> None:
    expected = [offsets for _, offsets in pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated").pre_tokenize_str(text)]
    ends = [len(text.encode()[:end].decode()) for end in packing.pre_tokens(text)]
    assert list(zip([0, *ends], ends, strict=False)) == expected == pre_tokens(text)


@settings(max_examples=400, deadline=None)
@given(before=TEXTS, after=TEXTS, other=TEXTS)
def test_what_always_parts_does_part_and_hides_what_follows(before: str, after: str, other: str) -> None:
    """The two facts on which the re-merge of FIM rests."""
    if not before or not after or not boundary_between(before[-1], after[0]):
        return
    left = pre_tokens(before)
    assert [span for span in pre_tokens(before + after) if span[1] <= len(before)] == left
    assert [(a - len(before), b - len(before)) for a, b in pre_tokens(before + after)[len(left) :]] == pre_tokens(after)
    assert pre_tokens(other + before + after)[-len(pre_tokens(after)) :] == [
        (a + len(other + before), b + len(other + before)) for a, b in pre_tokens(after)
    ]


def test_character_classes_are_those_of_the_installed_tokenizers() -> None:
    table = packing.character_classes()
    for value, pattern in ((1, r"\p{L}"), (2, r"\p{N}"), (3, r"\s")):
        split = pre_tokenizers.Split(Regex(pattern), "removed")
        for start in range(0, 0x110000, 4096):
            block = [chr(code) for code in range(start, start + 4096) if not 0xD800 <= code < 0xE000]
            if not block:
                continue
            kept = {c for piece, _ in split.pre_tokenize_str("".join(block)) for c in piece}
            ours = {c for c in block if table[ord(c)] != value}
            assert ours == kept, [hex(ord(c)) for c in ours ^ kept][:9]


def test_it_is_saved_loaded_and_loaded_by_transformers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint == Tokenizer.load(tmp_path / "tokenizer.json").fingerprint
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n    return x + 10  # é 中 🙂\r\n"
    assert theirs(text).input_ids == again.encode(text)
    assert theirs.decode(theirs(text).input_ids) == text
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (0, 1, tokenizer.vocab_size)
    assert theirs.convert_tokens_to_ids(special_tokens()) == list(range(128))
    prompt = "<|fim_prefix|>def f(<|fim_suffix|>): pass<|fim_middle|>"
    assert theirs(prompt).input_ids == again.encode_fim("def f(", "): pass")


def test_saving_twice_writes_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for folder in ("a", "b"):
        tokenizer.save(tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_decoding(tokenizer: Tokenizer) -> None:
    ids = [0, *tokenizer.encode("é"), 3]
    assert tokenizer.decode(ids) == "<|endoftext|>é<|fim_middle|>"
    assert tokenizer.decode(ids, skip_special=True) == "é"
    byte = next(i for i, piece in enumerate(tokenizer.token_bytes) if piece == b"\xc3")
    assert tokenizer.decode([byte]) == "\ufffd"
    with pytest.raises(MifyError, match="beyond the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])


def test_empty_batches_and_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode_batch(["", "a", ""]) == [[], tokenizer.encode("a"), []]


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("1234567890")) == 10
    assert not any(sum(48 <= b < 58 for b in piece) > 1 for piece in tokenizer.token_bytes[NUM_SPECIAL:])


def test_a_foreign_vocabulary_has_no_fim(tokenizer: Tokenizer) -> None:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    foreign = Tokenizer({**tokenizer.definition, "added_tokens": [], "pre_tokenizer": level})
    assert foreign.native is None
    assert foreign.eot_id is foreign.pad_id is foreign.fim_prefix_id is None
    assert foreign.decode(foreign.encode("def f(): 123")) == "def f(): 123"
    assert foreign.encode_batch(["a", "", "b c"]) == [foreign.encode("a"), [], foreign.encode("b c")]
    with pytest.raises(MifyError, match="no FIM tokens"):
        foreign.encode_fim("a", "b")


@pytest.mark.parametrize("bad", ["\ud800", "ok \udfff"])
def test_lone_surrogates_are_refused(bad: str, tokenizer: Tokenizer) -> None:
    for call in (lambda: tokenizer.encode(bad), lambda: tokenizer.encode_batch(["fine", bad])):
        with pytest.raises(MifyError, match="lone surrogate"):
            call()


def test_what_is_no_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(MifyError, match="type bytes"):
        tokenizer.encode(b"bytes")  # type: ignore[arg-type]


def test_bad_training_is_refused() -> None:
    with pytest.raises(MifyError, match="vocabulary of 383 is too small"):
        train_tokenizer(["x"], 383)
    with pytest.raises(MifyError, match="no text"):
        train_tokenizer(["", ""], 500)
    with pytest.raises(MifyError, match="lone surrogate"):
        train_tokenizer(["fine", "\ud800"], 500)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "has no `model`"),
        ('{"model": {"type": "WordPiece"}}', "'WordPiece'"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', "not byte-level"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_bad_files_are_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MifyError, match=message):
        Tokenizer.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match="nowhere"):
        Tokenizer.load(tmp_path / "nowhere")


def test_the_core_refuses_a_damaged_vocabulary() -> None:
    good = {
        "token_bytes": [bytes([i]) for i in range(256)],
        "is_special": np.zeros(256, np.uint8),
        "merge_left": np.zeros(0, np.uint32),
        "merge_right": np.zeros(0, np.uint32),
        "merge_result": np.zeros(0, np.uint32),
        "byte_ids": np.arange(256, dtype=np.uint32),
    }
    ids, offsets = packing.Bpe(**good).encode_batch(["añ", ""])  # type: ignore[arg-type]
    assert (ids.tolist(), offsets.tolist()) == (list("añ".encode()), [0, 3, 3])
    for name, value in (
        ("is_special", np.zeros(3, np.uint8)),
        ("byte_ids", np.full(256, 999, np.uint32)),
        ("byte_ids", np.zeros(3, np.uint32)),
        ("merge_left", np.zeros(1, np.uint32)),
    ):
        with pytest.raises(ValueError, match=r"is_special|byte_ids|merges"):
            packing.Bpe(**{**good, name: value})  # type: ignore[arg-type]


def test_spans_of_a_batch_are_independent(tokenizer: Tokenizer, sources: list[str]) -> None:
    ids, offsets = tokenizer.encode_arrays(sources[:5], threads=2)
    assert ids.dtype == np.uint32
    for (start, end), text in zip(itertools.pairwise(offsets), sources, strict=False):
        assert ids[start:end].tolist() == tokenizer.encode(text)
