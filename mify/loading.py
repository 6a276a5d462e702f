"""`load(path)`: a model from whatever holds one, a Hugging Face folder, a GGUF file, a run, a checkpoint."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor

from mify.config import ModelConfig
from mify.errors import MifyError
from mify.export.conventions import Conventions
from mify.export.gguf import GgufWeights
from mify.export.hf import HfWeights
from mify.export.weights import Weights, tensor_shapes, to_model
from mify.files import read_json, sha256_file
from mify.model import Model
from mify.tokenizer import Tokenizer

_CHECKPOINT_FORMAT, _CHECKPOINT_VERSION = "mify-checkpoint", 1
_log = logging.getLogger(__name__)


def load(
    path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Model:
    """The model at `path`, in evaluation mode, with its `tokenizer`.

    Args:
        path: a Hugging Face folder, a GGUF file, a run folder of the trainer (its newest whole checkpoint), or one
            checkpoint (`step-…`).
        dtype: of the weights in memory. device: where they go.

    Raises:
        MifyError: nothing there that is a model; a file that is damaged, truncated or of an unknown version; a model
            that is not Llama-shaped; a tokenizer with more tokens than the model has rows.
    """
    return to_model(open_weights(path), dtype=dtype, device=device)


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """As `load`, but the tensors stay on the disk until each is asked for: what the exporters take."""
    path = Path(path)
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise MifyError(f"{path} does not exist", "give a Hugging Face folder, a GGUF file, a run or a checkpoint")
    if (path / "dcp").is_dir() or (path / "manifest.json").exists():
        return CheckpointWeights(path)
    if (path / "checkpoints").is_dir() or (path / "latest").exists():
        return _newest_checkpoint(path)
    if (path / "config.json").exists():
        return HfWeights(path)
    inside = sorted(item.name for item in path.glob("*.gguf"))
    hint = f"give the file itself: {path / inside[0]}" if inside else "give the folder that holds config.json or latest"
    raise MifyError(f"{path} holds no model (no config.json, no checkpoints)", hint)


class CheckpointWeights(Weights):
    """One checkpoint of the trainer: `dcp/` with the keys `model.<name>`, `model.json`, `tokenizer.json`.

    Every file is compared with the manifest's size and SHA-256 before anything is read from it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        self.folder = Path(folder)
        self.source = str(self.folder)
        _verify(self.folder)
        values = read_json(self.folder / "model.json")
        if not isinstance(values, dict):
            raise MifyError(f"{self.folder / 'model.json'} holds no model configuration", "use another checkpoint")
        self.config = ModelConfig.from_dict(values)
        self.tokenizer = Tokenizer.load(self.folder) if (self.folder / "tokenizer.json").exists() else None
        self.conventions = Conventions.of(self.tokenizer)
        self.check_vocabulary()
        try:
            stored = FileSystemReader(self.folder / "dcp").read_metadata().state_dict_metadata
        except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ValueError) as error:
            raise MifyError(
                f"{self.folder / 'dcp'} has no readable metadata ({error})", "use another checkpoint of the run"
            ) from None
        self._dtypes: dict[str, torch.dtype] = {}
        for name, shape in tensor_shapes(self.config).items():
            entry = stored.get(f"model.{name}")
            if not isinstance(entry, TensorStorageMetadata) or tuple(entry.size) != shape:
                found = f"of shape {tuple(entry.size)}" if isinstance(entry, TensorStorageMetadata) else "absent"
                raise MifyError(
                    f"{self.folder}: {name} is {found}, model.json asks for {shape}",
                    "use the model.json that belongs to this checkpoint",
                )
            self._dtypes[name] = entry.properties.dtype

    def tensor(self, name: str) -> Tensor:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load as load_dcp

        shape = tensor_shapes(self.config)[name]
        wanted = {f"model.{name}": torch.empty(shape, dtype=self._dtypes[name])}
        with warnings.catch_warnings():
            # It says that it loads in a single process, which is what is asked for.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load_dcp(wanted, storage_reader=FileSystemReader(self.folder / "dcp"), no_dist=True)
        return wanted[f"model.{name}"]

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]


def _open_file(path: Path) -> Weights:
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        return GgufWeights(path)
    if path.suffix == ".safetensors":
        raise MifyError(f"{path} is one file of a Hugging Face folder", f"give the folder: {path.parent}")
    raise MifyError(f"{path} is no GGUF file", "give a Hugging Face folder, a GGUF file, a run or a checkpoint")


def _newest_checkpoint(run: Path) -> Weights:
    """The checkpoint that `latest` names; where it is damaged or absent, the newest that is whole."""
    candidates = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    if (run / "latest").is_file():
        named = run / (run / "latest").read_text(encoding="utf-8", errors="replace").strip()
        candidates = [named, *(candidate for candidate in candidates if candidate != named)]
    problems: list[str] = []
    for candidate in candidates:
        try:
            found = CheckpointWeights(candidate)
        except MifyError as error:
            problems.append(error.problem)
            continue
        for problem in problems:
            _log.warning("passed over a checkpoint: %s; using %s", problem, candidate)
        return found
    if problems:
        raise MifyError(f"no checkpoint of {run} is whole: {'; '.join(problems)}", "restore one from a copy")
    raise MifyError(f"{run} has no checkpoint yet", "train until the first checkpoint is written")


def _verify(folder: Path) -> None:
    manifest = read_json(folder / "manifest.json")
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
    if found != (_CHECKPOINT_FORMAT, _CHECKPOINT_VERSION) or not isinstance(manifest.get("files"), dict):
        raise MifyError(
            f"{folder} is no {_CHECKPOINT_FORMAT} of version {_CHECKPOINT_VERSION} (found {found[0]}, {found[1]})",
            "use the mify that wrote it",
        )
    remedy = "use another checkpoint of the run"
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise MifyError(f"{path} is missing", remedy)
        if path.stat().st_size != entry["bytes"]:
            raise MifyError(f"{path} has {path.stat().st_size} bytes, not {entry['bytes']}", remedy)
        if sha256_file(path) != entry["sha256"]:
            raise MifyError(f"{path} has changed since it was written (SHA-256 differs)", remedy)
