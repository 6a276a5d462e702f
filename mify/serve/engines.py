"""Which engine serves a model here, and what it is started on.

    GPU    vLLM, else SGLang, on a Hugging Face folder
    CPU    llama.cpp's server (in this process, by `xllamacpp`), on a GGUF file

What is no such folder or file (a run, a checkpoint) is exported first, into the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO

from mify.errors import MifyError

ENGINES = ("llama.cpp", "vllm", "sglang")
START_S = 600.0
_INSTALL = {
    "llama.cpp": "pip install 'mify[llama-cpp]'",
    "vllm": "pip install vllm",
    "sglang": "pip install 'sglang[all]'",
}


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine is started on: a Hugging Face folder or a GGUF file, and where the two come from."""

    path: Path
    is_gguf: bool


def choose_engine(asked: str, *, is_gguf: bool, has_gpu: bool, installed: Sequence[str]) -> str:
    """The engine for a model on a machine.

    Args:
        asked: an engine's name, or "auto". is_gguf: the model is a GGUF file. installed: the engines that are here.

    Raises:
        MifyError: what was asked for cannot serve the model or is not installed; it says what to install.
    """
    if asked != "auto":
        if asked not in ENGINES:
            raise MifyError(f"the engine {asked!r} is unknown", f"use auto or one of {', '.join(ENGINES)}")
        if asked not in installed:
            raise MifyError(f"{asked} is not installed here", _INSTALL[asked])
        if is_gguf and asked != "llama.cpp":
            raise MifyError(
                f"{asked} is not started on a GGUF file", "give a Hugging Face folder, or leave --engine out"
            )
        return asked
    order = ("vllm", "sglang", "llama.cpp") if has_gpu and not is_gguf else ("llama.cpp",)
    for name in order:
        if name in installed:
            return name
    raise MifyError(
        f"no engine is installed that serves {'a GGUF file' if is_gguf else 'this model'} here", _INSTALL[order[0]]
    )


def installed_engines() -> list[str]:
    """The engines that are installed here."""
    found = ["llama.cpp"] if find_spec("xllamacpp") is not None else []
    found += ["vllm"] if _command("vllm") is not None else []
    found += ["sglang"] if find_spec("sglang") is not None else []
    return found


def prepare(model: Path, engine: str, *, dtype: str = "q8_0", cache: Path | None = None) -> Served:
    """The model in the form that the engine loads, exported into the cache where it is in another.

    Args:
        dtype: of a GGUF file made here.

    Raises:
        MifyError: there is no model at the path.
    """
    if engine == "llama.cpp" and model.is_file():
        return Served(model, True)
    if engine != "llama.cpp" and (model / "config.json").is_file():
        return Served(model, False)
    from mify.loading import open_weights

    weights = open_weights(model)
    place = (cache or cache_folder()) / "serve" / f"{model.resolve().name}-{_stamp(model, dtype)}"
    if engine == "llama.cpp":
        from mify.export.gguf import export_gguf

        file = place.with_suffix(f".{dtype}.gguf")
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            export_gguf(weights, file, dtype)
        return Served(file, True)
    from mify.export.hf import export_hf

    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        export_hf(weights, place)
    return Served(place, False)


def cache_folder() -> Path:
    """mify's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mify"


def _stamp(model: Path, dtype: str) -> str:
    """Changes where a file of the model does: by name, size and time, since weights are large."""
    digest = hashlib.sha256(dtype.encode())
    for file in sorted([model] if model.is_file() else model.rglob("*")):
        if file.is_file():
            facts = file.stat()
            digest.update(f"{file.relative_to(model)}:{facts.st_size}:{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


class EngineProcess:
    """vLLM or SGLang in a process of its own. A context manager: it ends with the block.

    Args:
        engine: "vllm" or "sglang". folder: a Hugging Face folder. name: what the endpoint calls the model.
        context: tokens; None is what the model says. arguments: more of the engine's own.

    Raises:
        MifyError: it ends before it serves; its last words are in the error.
    """

    def __init__(
        self,
        engine: str,
        folder: Path,
        name: str,
        *,
        context: int | None = None,
        arguments: Sequence[str] = (),
        timeout: float = START_S,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        self._process = subprocess.Popen(
            [*engine_command(engine, folder, name, self.port, context), *arguments],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + timeout
        while not _answers(f"{self.url}/health"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = self._last_words()
                self.close()
                raise MifyError(f"{engine} does not serve {folder}:\n{words}", "see the engine's own documentation")
            time.sleep(0.5)

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        return "\n".join(self._log.read().decode("utf-8", "replace").strip().splitlines()[-8:]) or "it said nothing"


def engine_command(engine: str, folder: Path, name: str, port: int, context: int | None) -> list[str]:
    """How vLLM or SGLang is started on a folder, with calls of functions parsed in Hermes' form."""
    address = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name]
    if engine == "vllm":
        tools = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
        length = [] if context is None else ["--max-model-len", str(context)]
        return [_command("vllm") or "vllm", "serve", str(folder), *address, *tools, *length]
    length = [] if context is None else ["--context-length", str(context)]
    python = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(folder)]
    return [*python, *address, "--tool-call-parser", "qwen25", *length]


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _command(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)
