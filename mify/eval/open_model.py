"""Opens whatever a user calls a model as something that completes prompts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mify.errors import MifyError

if TYPE_CHECKING:
    from mify.eval.completers import Completer
    from mify.model import Model

_log = logging.getLogger(__name__)
ENGINES = ("auto", "mify", "transformers", "llama.cpp")


@contextmanager
def open_model(
    model: str,
    *,
    engine: str = "auto",
    device: str = "auto",
    endpoint_model: str | None = None,
    api_key_variable: str = "OPENAI_API_KEY",
    endpoint_infills: bool = False,
    threads: int | None = None,
) -> Iterator[tuple[Completer, Model | None]]:
    """The completer, and the model itself where it is one of mify's (for bits per byte).

    Args:
        model: a path, or the address of an OpenAI-compatible endpoint.
        engine: who runs a path: "mify", "transformers" or "llama.cpp"; "auto" is `engine_of`.
        threads: of llama.cpp; as many as there are free cores by default.

    Raises:
        MifyError: an engine, a device or a model that is not there.
    """
    if engine not in ENGINES:
        raise MifyError(f"the engine {engine!r} is unknown", f"use one of {', '.join(ENGINES)}")
    if model.startswith(("http://", "https://")):
        from mify.eval.endpoint import EndpointCompleter

        if endpoint_model is None:
            raise MifyError("an endpoint serves models by name", "give --endpoint-model NAME")
        key = os.environ.get(api_key_variable)
        yield EndpointCompleter(model, endpoint_model, api_key=key, suffix=endpoint_infills), None
        return
    if endpoint_model is not None:
        raise MifyError(
            f"--endpoint-model {endpoint_model} goes with an endpoint's address, not with {model}", "leave it out"
        )
    if engine == "auto":
        engine = engine_of(Path(model))
        if engine != "mify":
            _log.info("%s is not Llama-shaped: %s runs it", model, engine)
    if engine == "llama.cpp":
        from mify.eval.endpoint import LlamaCppCompleter

        with LlamaCppCompleter(model, threads=threads or free_cpus()) as completer:
            yield completer, None
        return
    import torch

    chosen = _device(device)
    dtype = torch.bfloat16 if chosen.startswith("cuda") else torch.float32
    if engine == "transformers":
        from mify.eval.transformers_model import TransformersCompleter

        yield TransformersCompleter(model, device=chosen, dtype=dtype), None
        return
    from mify.eval.completers import MifyCompleter
    from mify.eval.evaluate import model_identity
    from mify.loading import load

    loaded = load(model, device=chosen, dtype=dtype)
    name = Path(model).resolve().name
    yield MifyCompleter(loaded, name, model_identity(loaded, name)), loaded


def engine_of(model: Path) -> str:
    """Who runs a path: mify what is Llama-shaped, else `transformers` for a folder and llama.cpp for a GGUF file."""
    import json

    if model.is_dir() and (model / "config.json").is_file():
        try:
            values = json.loads((model / "config.json").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError):
            return "mify"  # which says what is wrong with it
        from mify.export.hf_config import MODEL_TYPES

        known = isinstance(values, dict) and values.get("model_type", "llama") in MODEL_TYPES
        return "mify" if known else "transformers"
    if model.is_file() and model.suffix == ".gguf":
        from mify.export.gguf_file import GgufFile

        try:
            shape = GgufFile(model).fields.get("general.architecture", "llama")
        except MifyError:
            return "mify"
        return "mify" if shape == "llama" else "llama.cpp"
    return "mify"


def free_cpus() -> int:
    """Cores that others leave now: with more threads than that, llama.cpp's waiting threads take the time."""
    from mify.eval.sandbox import usable_cpus

    return max(1, usable_cpus() - round(os.getloadavg()[0]))


def _device(device: str) -> str:
    import torch

    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise MifyError(f"device {device!r} is unknown", "use auto, cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MifyError("device cuda is not there", "use --device cpu; `mify doctor` says what this machine has")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
