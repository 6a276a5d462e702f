"""Byte-level BPE with the special tokens: training, encoding, decoding, the `tokenizer.json` that others load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mify import special_tokens as special
from mify.errors import MifyError
from mify.files import atomic_file, make_folder, write_json

if TYPE_CHECKING:
    from mify._core.packing import Bpe

QWEN2_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""llama.cpp's `qwen2`, letter for letter. The usual form `(?i:'s|…)` differs from it in one character: it also takes
`'ſ` (U+017F) for a contraction, so a model would see other ids in `transformers` than in llama.cpp."""

MIN_VOCAB_SIZE = special.NUM_SPECIAL + 256
"""The special tokens and the 256 bytes."""


def byte_alphabet() -> dict[str, int]:
    """GPT-2's reversible map of the 256 bytes to printable characters: character -> byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(rest)}


class Tokenizer:
    """A byte-level BPE `tokenizer.json`, ours or another's.

    Text is data: a special token's name inside a text is encoded as the characters it consists of. Special ids are put
    in place by the caller (`eot_id`, `special[...]`, `encode_fim`).
    """

    def __init__(self, definition: dict[str, Any]) -> None:
        """Args: definition: the content of a `tokenizer.json`. Raises: MifyError where it is no byte-level BPE."""
        import tokenizers

        if definition.get("model", {}).get("type") != "BPE":
            kind = definition.get("model", {}).get("type")
            raise MifyError(
                f"the tokenizer's model is {kind!r}", "use a byte-level BPE tokenizer.json (GPT-2, Llama 3, Qwen, mify)"
            )
        if '"ByteLevel"' not in json.dumps([definition.get("pre_tokenizer"), definition.get("decoder")]):
            raise MifyError(
                "the tokenizer is not byte-level, so text would not come back from its tokens",
                "use a byte-level BPE tokenizer.json (GPT-2, Llama 3, Qwen, mify)",
            )
        self.definition = definition
        text_only = {**definition, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._text = tokenizers.Tokenizer.from_str(json.dumps(text_only))
        self.special: dict[str, int] = {token["content"]: token["id"] for token in definition.get("added_tokens", ())}
        self._special_by_id = {index: name for name, index in self.special.items()}
        ids = [*definition["model"]["vocab"].values(), *self.special.values()]
        self.vocab_size: int = max(ids) + 1
        self.eot_id = self._first(special.END_OF_TEXT, "<|end_of_text|>", "</s>")
        self.pad_id = self._first(special.PAD, "<pad>")
        self.fim_prefix_id = self._first(special.FIM_PREFIX, "<fim_prefix>", "<|fim_begin|>")
        self.fim_middle_id = self._first(special.FIM_MIDDLE, "<fim_middle>", "<|fim_end|>")
        self.fim_suffix_id = self._first(special.FIM_SUFFIX, "<fim_suffix>", "<|fim_hole|>")
        self.im_start_id = self._first(special.IM_START)
        self.im_end_id = self._first(special.IM_END)

    def _first(self, *names: str) -> int | None:
        return next((self.special[name] for name in names if name in self.special), None)

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """Reads a `tokenizer.json`, given the file or its folder."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            definition = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MifyError(f"{file} does not exist", "train one: mify tokenizer train --help") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise MifyError(f"{file} is not valid JSON ({error})", "it is damaged: train or copy it again") from None
        if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
            raise MifyError(f"{file} is no tokenizer.json: it has no `model`", "give a Hugging Face tokenizer.json")
        return Tokenizer(definition)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and its configuration; `transformers` loads the folder as PreTrainedTokenizerFast."""
        folder = Path(folder)
        make_folder(folder)
        with atomic_file(folder / "tokenizer.json") as temporary:
            temporary.write_text(json.dumps(self.definition, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(1e30),
        }
        for key, index in (("eos_token", self.eot_id), ("bos_token", self.eot_id), ("pad_token", self.pad_id)):
            if index is not None:
                config[key] = self._special_by_id[index]
        write_json(folder / "tokenizer_config.json", config)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content, not the file: spacing and key order do not matter."""
        canonical = json.dumps(self.definition, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """(vocab_size,) the bytes of every token; a special token has its name's bytes, an unused id none."""
        to_byte = byte_alphabet()
        table = [b""] * self.vocab_size
        for token, index in self.definition["model"]["vocab"].items():
            table[index] = bytes(to_byte[c] for c in token) if all(c in to_byte for c in token) else token.encode()
        for token, index in self.special.items():
            table[index] = token.encode()
        return table

    def mergeable_ranks(self) -> dict[bytes, int]:
        """What `tiktoken.Encoding` takes beside `QWEN2_PATTERN`: the bytes of every token that is not special."""
        special_ids = set(self.special.values())
        return {piece: i for i, piece in enumerate(self.token_bytes) if piece and i not in special_ids}

    @cached_property
    def native(self) -> Bpe | None:
        """The same vocabulary in `mify._core`, or None where its pre-tokenizer is another than qwen2's."""
        model = self.definition["model"]
        plain = all(not model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        if (
            not plain
            or self.definition.get("normalizer")
            or self.definition.get("pre_tokenizer") != _qwen2(QWEN2_PATTERN)
        ):
            return None
        vocab: dict[str, int] = model["vocab"]
        alphabet = byte_alphabet()
        if any(character not in vocab for character in alphabet):
            return None
        from mify._core.packing import Bpe

        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        is_special = np.zeros(self.vocab_size, np.uint8)
        is_special[list(self.special.values())] = 1
        return Bpe(
            token_bytes=self.token_bytes,
            is_special=is_special,
            merge_left=np.array([vocab[left] for left, _ in merges], np.uint32),
            merge_right=np.array([vocab[right] for _, right in merges], np.uint32),
            merge_result=np.array([vocab[left + right] for left, right in merges], np.uint32),
            byte_ids=np.array([vocab[c] for c in sorted(alphabet, key=alphabet.__getitem__)], np.uint32),
            ignore_merges=bool(model.get("ignore_merges")),
        )

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; a special token's name in it is text like any other."""
        ids: list[int] = self.encode_arrays([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        ids, offsets = self.encode_arrays(texts, threads)
        return [part.tolist() for part in np.split(ids, offsets[1:-1])] if len(texts) else []

    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """(ids, offsets) of shapes (all ids,) and (len(texts) + 1,): text i has ids[offsets[i]:offsets[i + 1]].

        By `mify._core`, 35 times as fast as `tokenizers` on a core and equal to it, where it knows the pre-tokenizer.
        """
        try:
            if self.native is not None:
                return self.native.encode_batch(texts, threads)
            encodings = self._text.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise next((_not_text(text) for text in texts if not _is_text(text)), _not_text("")) from None
        offsets = np.cumsum([0, *(len(encoding.ids) for encoding in encodings)], dtype=np.int64)
        return np.array([i for encoding in encodings for i in encoding.ids], np.uint32), offsets

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 (a cut inside a character) become U+FFFD."""
        table = self.token_bytes
        try:
            pieces = [table[i] for i in ids if not (skip_special and i in self._special_by_id)]
        except IndexError:
            raise MifyError(
                f"an id is beyond the vocabulary of {self.vocab_size}", "decode with the tokenizer that encoded it"
            ) from None
        return b"".join(pieces).decode("utf-8", errors="replace")

    def encode_fim(self, prefix: str, suffix: str) -> list[int]:
        """The PSM prompt `<|fim_prefix|>prefix<|fim_suffix|>suffix<|fim_middle|>`; the model writes the middle."""
        if self.fim_prefix_id is None or self.fim_middle_id is None or self.fim_suffix_id is None:
            raise MifyError("this vocabulary has no FIM tokens", "use a tokenizer with <|fim_prefix|> and its siblings")
        return [
            self.fim_prefix_id,
            *self.encode(prefix),
            self.fim_suffix_id,
            *self.encode(suffix),
            self.fim_middle_id,
        ]


def train_tokenizer(texts: Iterable[str], vocab_size: int, threads: int = 1) -> Tokenizer:
    """Byte-level BPE over `texts` with the special tokens at ids 0 to 127 and single digits.

    The merges are those that the trainer of `tokenizers` finds. The result depends on the texts alone, not on their
    order or on threads. A small corpus may have fewer pairs than asked for: `vocab_size` of the result tells.

    Raises: MifyError: vocab_size below 384 (128 special tokens and 256 bytes), or no text at all.
    """
    from mify._core.packing import WordCounts, train_bpe

    if vocab_size < MIN_VOCAB_SIZE:
        raise MifyError(
            f"a vocabulary of {vocab_size} is too small",
            f"ask for at least {MIN_VOCAB_SIZE}: {special.NUM_SPECIAL} special tokens and 256 bytes",
        )
    words = WordCounts()
    for batch in _batched(texts, 1024):
        try:
            words.add(batch, threads)
        except (TypeError, UnicodeEncodeError):
            raise next(_not_text(text) for text in batch if not _is_text(text)) from None
    if not len(words):
        raise MifyError("there is no text to train a tokenizer on", "give a corpus with documents in it")
    characters = sorted(byte_alphabet())
    order = bytes(byte_alphabet()[character] for character in characters)
    tokens, *merges = train_bpe(words, vocab_size, special.NUM_SPECIAL, order)
    to_character = {byte: character for character, byte in byte_alphabet().items()}
    names = special.special_tokens()
    names += characters + ["".join(to_character[byte] for byte in token) for token in tokens]
    return Tokenizer(_definition(names, [[names[left], names[right]] for left, right, _ in zip(*merges, strict=True)]))


def _definition(names: list[str], merges: list[list[str]]) -> dict[str, Any]:
    """The `tokenizer.json` of a vocabulary whose first ids are special."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": index, "content": name, **flags} for index, name in enumerate(names[: special.NUM_SPECIAL])]
    nothing = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _qwen2(QWEN2_PATTERN),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            **dict.fromkeys(nothing),
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: index for index, name in enumerate(names)},
            "merges": merges,
        },
    }


def _qwen2(pattern: str) -> dict[str, Any]:
    """The `pre_tokenizer` of a tokenizer.json with the qwen2 pattern."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


def _batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(islice(rest, size)):
        yield batch


def _is_text(text: object) -> bool:
    return isinstance(text, str) and not any(0xD800 <= ord(c) < 0xE000 for c in text)


def _not_text(text: object) -> MifyError:
    if not isinstance(text, str):
        return MifyError(f"a text is of type {type(text).__name__}", "give str")
    return MifyError("a text has a lone surrogate, which is no Unicode text", "decode it as UTF-8 first")
