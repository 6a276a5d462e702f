"""Any model that `transformers` loads from a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mify.errors import MifyError
from mify.eval.completers import OnCompletion, Prompt, Sampling, cut_at_stop, fit_gap, infill_ids
from mify.files import sha256_file
from mify.special_tokens import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX

BATCH = 16
# Prefix, suffix and middle token as the common families of code models name them.
FIM_NAMES = (
    (FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("<PRE>", "<SUF>", "<MID>"),
)


class TransformersCompleter:
    """A causal language model of a Hugging Face folder, in batches padded on the left.

    Args:
        folder: with config.json, weights and tokenizer. Code in the folder is not run.
        device: where to run. dtype: of the weights.
    """

    fim_orders: tuple[str, ...] = ("psm", "spm")

    def __init__(self, folder: str | os.PathLike[str], *, device: str = "cpu", dtype: Any = None) -> None:
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from transformers.utils import logging
        except ImportError:
            raise MifyError("transformers is not installed", "pip install 'mify[export]'") from None
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise MifyError(f"{folder} is no Hugging Face folder (no config.json)", "give the folder of a model")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
            self._model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise MifyError(f"transformers does not load {folder}: {error}", "check the folder's files") from None
        self._model.to(device).eval()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._device = device
        self.name = folder.resolve().name
        self.identity = {"name": self.name, "kind": "transformers", "files_sha256": _files_hash(folder)}
        vocabulary = self._tokenizer.get_vocab()
        self._fim = next((names for names in FIM_NAMES if all(name in vocabulary for name in names)), None)
        self.can_infill, self.can_chat = self._fim is not None, bool(self._tokenizer.chat_template)

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        done: frozenset[tuple[str, int]],
        on_completion: OnCompletion,
    ) -> None:
        import torch

        context = getattr(self._model.config, "max_position_embeddings", None) or 1 << 20
        room = context - sampling.max_new_tokens
        if room < 16:
            raise MifyError(
                f"a context of {context} has no room for {sampling.max_new_tokens} new tokens",
                "give fewer with --max-new-tokens",
            )
        encoded = sorted(
            ((self._encode(prompt, room, sampling.fim_order), prompt) for prompt in prompts),
            key=lambda entry: (len(entry[0]), entry[1].key),
        )
        for start in range(0, len(encoded), BATCH):
            batch = encoded[start : start + BATCH]
            if all(prompt.key in done for _, prompt in batch):
                continue
            rows = [ids[-room:] for ids, _ in batch]
            width = max(map(len, rows))
            pad = self._tokenizer.pad_token_id
            tokens = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=self._device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self._device)
            torch.manual_seed(sampling.seed + start)
            sampled = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
            with torch.inference_mode():
                out = self._model.generate(
                    tokens,
                    attention_mask=mask,
                    max_new_tokens=sampling.max_new_tokens,
                    pad_token_id=pad,
                    stop_strings=list(sampling.stop) or None,
                    tokenizer=self._tokenizer,
                    **(sampled if sampling.temperature > 0 else {"do_sample": False}),
                )
            for (ids, prompt), row, new in zip(batch, rows, out[:, width:].tolist(), strict=True):
                if prompt.key not in done:
                    text = self._tokenizer.decode(new, skip_special_tokens=True)
                    count = sum(token != pad for token in new)
                    facts = {"prompt_tokens": len(row), "new_tokens": count, "prompt_cut": len(ids) - len(row)}
                    on_completion(prompt, cut_at_stop(text, sampling.stop), facts)

    def _encode(self, prompt: Prompt, room: int, order: str) -> list[int]:
        if prompt.chat:
            text = self._tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        if prompt.suffix is None:
            vocabulary = self._tokenizer.get_vocab()
            if prompt.parts and all(name in vocabulary for name, _ in prompt.parts):
                return list(self._tokenizer.encode("".join(name + text for name, text in prompt.parts) + prompt.text))
            return list(self._tokenizer.encode(prompt.whole))
        assert self._fim is not None
        marks = [self._tokenizer.convert_tokens_to_ids(name) for name in self._fim]

        def encode(text: str) -> list[int]:
            return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

        before, after = fit_gap(prompt.text, prompt.suffix, room - 3, encode, self._tokenizer.decode)
        return infill_ids(marks, encode(before), encode(after), order)


def _files_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            digest.update(f"{file.name}:{sha256_file(file)}\n".encode())
    return digest.hexdigest()
