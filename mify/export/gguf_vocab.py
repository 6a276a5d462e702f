"""A tokenizer as GGUF holds it (token texts, types, merges, special ids) and back to a tokenizer.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mify.errors import MifyError
from mify.export import pretokenizers
from mify.export.conventions import Conventions

# ggml's token types (gguf.TokenType).
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# What llama.cpp's /infill reads, and the texts that mean it: ours (and Qwen's) first, then other families'.
FIM_KEYS: dict[str, tuple[str, ...]] = {
    "fim_pre": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<｜fim▁begin｜>", "<|fim_begin|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<｜fim▁hole｜>", "<|fim_hole|>"),
    "fim_mid": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<｜fim▁end｜>", "<|fim_end|>"),
    "fim_pad": ("<|fim_pad|>", "<fim_pad>", "<fim-pad>"),
    "fim_rep": ("<|repo_name|>", "<repo_name>", "<reponame>", "<fim_repo>"),
    "fim_sep": ("<|file_sep|>", "<file_sep>"),
}
END_OF_TURN = "<|im_end|>"


@dataclass(slots=True)
class GgufVocabulary:
    """What `tokenizer.ggml.*` says.

    Args:
        tokens: text of every id, in byte-level spelling; as many as the model has embedding rows.
        types: ggml token type of every id.
        merges: "left right", best first.
        pre: name of the pre-tokenizer.
        special_ids: key without its `tokenizer.ggml.` and `_token_id` → id (bos, eos, eot, padding, fim_pre, …).
        add_bos: whether a begin-of-text token goes before every prompt.
        notes: what an engine does otherwise than the tokenizer, to be told to the user.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    special_ids: dict[str, int]
    add_bos: bool
    notes: list[str] = field(default_factory=list)


def from_tokenizer_json(
    tokenizer: dict[str, Any], vocab_size: int, conventions: Conventions, where: str
) -> GgufVocabulary:
    """The GGUF vocabulary of a parsed tokenizer.json for a model of `vocab_size` embedding rows.

    Raises `MifyError` where llama.cpp could not tokenize equally: another model than BPE, an unknown pattern, a
    normalizer that changes the text, more tokens than rows.
    """
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("continuing_subword_prefix"):
        raise MifyError(
            f"{where}: a {model.get('type')} tokenizer (byte_fallback={model.get('byte_fallback', False)})",
            "only byte-level BPE goes into GGUF here; export to Hugging Face's format",
        )
    notes: list[str] = []
    for normalizer in _flat(tokenizer.get("normalizer"), "normalizers"):
        if normalizer["type"] != "NFC":
            raise MifyError(
                f"{where}: the normalizer {normalizer['type']} changes the text, llama.cpp's byte-level BPE does not",
                "export to Hugging Face's format",
            )
        notes.append("llama.cpp does not apply the normalizer NFC: other text than NFC gets other tokens there")
    pre = pretokenizers.detect(tokenizer, where)

    texts: list[str | None] = [None] * vocab_size
    types = [UNUSED] * vocab_size
    for text, token_id in model["vocab"].items():
        _place(texts, types, token_id, text, NORMAL, where)
    for added in tokenizer.get("added_tokens") or []:
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            notes.append(f"llama.cpp ignores lstrip, rstrip and single_word of the token {added['content']!r}")
        _place(texts, types, added["id"], added["content"], CONTROL if added.get("special") else USER_DEFINED, where)
    tokens = [f"[PAD{token_id}]" if text is None else text for token_id, text in enumerate(texts)]

    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return GgufVocabulary(
        tokens, types, merges, pre.name, _special_ids(tokens, types, conventions), conventions.add_bos, notes
    )


def to_tokenizer_json(vocabulary: GgufVocabulary, where: str) -> dict[str, Any]:
    """The tokenizer.json that tokenizes as llama.cpp does with `vocabulary`."""
    pre = pretokenizers.by_name(vocabulary.pre, where)
    if len(vocabulary.types) != len(vocabulary.tokens):
        raise MifyError(
            f"{where}: {len(vocabulary.tokens)} tokens but {len(vocabulary.types)} token types",
            "the file is damaged: write or download it again",
        )
    known = {
        text: token_id
        for token_id, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind != UNUSED
    }
    added = [
        {
            "id": token_id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for token_id, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    merges: list[list[str]] = []
    for merge in vocabulary.merges:
        # As llama.cpp does: the separator is the first space after the first character.
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or left not in known or right not in known or left + right not in known:
            raise MifyError(
                f"{where}: the merge {merge!r} does not join two tokens into a third",
                "the vocabulary is damaged: write or download the file again",
            )
        merges.append([left, right])
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    post: dict[str, Any] = byte_level
    bos = vocabulary.special_ids.get("bos")
    if vocabulary.add_bos and bos is not None:
        text = vocabulary.tokens[bos]
        first = {"SpecialToken": {"id": text, "type_id": 0}}
        post = {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {text: {"id": text, "ids": [bos], "tokens": [text]}},
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pretokenizers.hugging_face(pre),
        "post_processor": post,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": known,
            "merges": merges,
        },
    }


def _special_ids(tokens: list[str], types: list[int], conventions: Conventions) -> dict[str, int]:
    ids: dict[str, int] = {}
    if conventions.eos_ids:
        ids["eos"] = conventions.eos_ids[0]
    # Without one, llama.cpp takes id 11 for a byte-level BPE, whatever that token is.
    if conventions.bos_id is not None:
        ids["bos"] = conventions.bos_id
    elif conventions.eos_ids:
        ids["bos"] = conventions.eos_ids[0]
    if conventions.pad_id is not None:
        ids["padding"] = conventions.pad_id
    special = {text: token_id for token_id, text in enumerate(tokens) if types[token_id] in (CONTROL, USER_DEFINED)}
    if END_OF_TURN in special and special[END_OF_TURN] != ids.get("eos"):
        ids["eot"] = special[END_OF_TURN]
    for key, names in FIM_KEYS.items():
        for name in names:
            if name in special:
                ids[key] = special[name]
                break
    return ids


def _place(texts: list[str | None], types: list[int], token_id: int, text: str, kind: int, where: str) -> None:
    if token_id >= len(texts):
        raise MifyError(
            f"{where}: token {text!r} has id {token_id}, but the model has {len(texts)} embedding rows",
            "use the tokenizer that the model was trained with",
        )
    texts[token_id] = text
    types[token_id] = kind


def _flat(entry: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if entry is None:
        return []
    if entry["type"] == "Sequence":
        return [step for inner in entry[key] for step in _flat(inner, key)]
    return [entry]
