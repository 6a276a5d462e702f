"""`load(path)`: a model from whatever holds one, a Hugging Face folder, a GGUF file, a run, a checkpoint."""

from __future__ import annotations

import logging
import os
import pickle
import re
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
from mify.lora import CONFIG as ADAPTER_CONFIG
from mify.lora import AdaptedWeights, Adapter, LoraConfig, merge
from mify.model import Model
from mify.tokenizer import Tokenizer

_CHECKPOINT_FORMAT, _CHECKPOINT_VERSION = "mify-checkpoint", 1
_log = logging.getLogger(__name__)


def load(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    quantized: bool = False,
) -> Model:
    """The model at `path`, in evaluation mode, with its `tokenizer`.

    Args:
        path: a Hugging Face folder, a GGUF file, a run folder of the trainer (its newest whole checkpoint), one
            checkpoint (`step-…`), or an adapter in `peft`'s format whose base is here. Adapters are merged.
        dtype: of the weights in memory. device: where they go.
        quantized: leave linear weights of a quantized folder as they are stored (`mify.quantization.linear`); otherwise
            they are decoded.

    Raises:
        MifyError: nothing there that is a model; a file that is damaged, truncated or of an unknown version; a model
            that is not Llama-shaped; a tokenizer with more tokens than the model has rows.
    """
    weights = open_weights(path)
    if quantized:
        from mify.quantization.linear import keep_quantized

        return keep_quantized(weights, dtype=dtype, device=device)
    return to_model(weights, dtype=dtype, device=device)


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """As `load`, but the tensors stay on the disk until each is asked for: what the exporters take."""
    path = Path(path)
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        remedy = "give a Hugging Face folder, a GGUF file, a run or a checkpoint"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            remedy += "; a name on a hub is downloaded first (hf download), nothing is fetched here"
        raise MifyError(f"{path} does not exist", remedy)
    if (path / "dcp").is_dir() or (path / "manifest.json").exists():
        return CheckpointWeights(path)
    if (path / "checkpoints").is_dir() or (path / "latest").exists():
        return _newest_checkpoint(path)
    if (path / ADAPTER_CONFIG).exists():
        return _adapted(path)
    if (path / "config.json").exists():
        if read_json(path / "config.json").get("format") == "mify-train-config":
            return _newest_checkpoint(path)
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
        self._shapes = {k: tuple(e.size) for k, e in stored.items() if isinstance(e, TensorStorageMetadata)}
        self.lora = LoraConfig.from_dict(read_json(self.folder / "lora.json")) if self._has("lora.json") else None
        for name, shape in tensor_shapes(self.config).items():
            entry = stored.get(f"model.{name}")
            if not isinstance(entry, TensorStorageMetadata) or tuple(entry.size) != shape:
                found = f"of shape {tuple(entry.size)}" if isinstance(entry, TensorStorageMetadata) else "absent"
                raise MifyError(
                    f"{self.folder}: {name} is {found}, model.json asks for {shape}",
                    "use the model.json that belongs to this checkpoint",
                )
            self._dtypes[name] = entry.properties.dtype

    def _has(self, file: str) -> bool:
        return (self.folder / file).is_file()

    def tensor(self, name: str) -> Tensor:
        """With the correction of an adapter in it, where one was trained."""
        weight = self._read(name)
        correction = self._correction(name.removesuffix(".weight"))
        return weight if correction is None else merge(weight, *correction)

    def adapter(self) -> Adapter:
        """The adapter that was trained. Raises MifyError where the run trained all weights."""
        if self.lora is None:
            raise MifyError(
                f"{self.source} is of a run that trained all weights", "export it as hf; lora.rank makes one"
            )
        names = (name.removesuffix(".weight") for name in tensor_shapes(self.config))
        layers = {name: found for name in names if (found := self._correction(name)) is not None}
        return Adapter(self.lora, str(read_json(self.folder / "config.json")["init"]["weights"] or ""), layers)

    def _correction(self, layer: str) -> tuple[Tensor, Tensor, float] | None:
        if self.lora is None or f"model.{layer}.lora_A" not in self._shapes:
            return None
        return self._read(f"{layer}.lora_A"), self._read(f"{layer}.lora_B"), self.lora.scale

    def _read(self, name: str) -> Tensor:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load as load_dcp

        dtype = self._dtypes.get(name, torch.float32)
        wanted = {f"model.{name}": torch.empty(self._shapes[f"model.{name}"], dtype=dtype)}
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


def _adapted(path: Path) -> Weights:
    """The base that an adapter names, with the adapter in it."""
    adapter = Adapter.load(path)
    if not adapter.base or not Path(adapter.base).exists():
        raise MifyError(
            f"the adapter {path} is of {adapter.base or 'a base that it does not name'}, which is not here",
            f"put the base model's path into base_model_name_or_path of {path / ADAPTER_CONFIG}",
        )
    return AdaptedWeights(open_weights(adapter.base), adapter, str(path))


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
