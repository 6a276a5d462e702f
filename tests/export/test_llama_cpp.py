"""The llama.cpp in this process: its life, and what it says when asked wrongly."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from mify.errors import MifyError
from mify.export import llama_cpp
from mify.export.gguf import export_gguf
from mify.generate import generate
from mify.model import Model

pytestmark = pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Model]) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    export_gguf(make_model(seed=5, tie_embeddings=False), path)
    return path


def test_the_server_ends_with_its_block(file: Path) -> None:
    with llama_cpp.LlamaCpp(file) as server:
        assert server.request("/health") == {"status": "ok"}
        url = server.url
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/health", timeout=5)
    with pytest.raises(MifyError, match="was closed"):
        server.tokenize("x")


def test_two_servers_do_not_meet(file: Path) -> None:
    with llama_cpp.LlamaCpp(file) as one, llama_cpp.LlamaCpp(file, context=64) as two:
        assert one.url != two.url
        assert one.greedy([200, 201], 5) == two.greedy([200, 201], 5)
        one.close()
        assert len(two.greedy([200], 2)) == 2


def test_decoding_goes_on_behind_an_end_token_or_ends_there(file: Path, make_model: Callable[..., Model]) -> None:
    model = make_model(seed=5, tie_embeddings=False)
    ends = {0, 5, 6, 7, 9}  # what llama.cpp takes for end tokens: end of text, FIM pad, repository, file, end of turn
    prompts = [[first] for first in range(130, 230)]
    decoded = generate(model, prompts, max_new_tokens=20, stop_ids=())
    meeting_an_end = [pair for pair in zip(prompts, decoded, strict=True) if ends & set(pair[1])]
    assert meeting_an_end, "no prompt led to an end token: change the seed"
    with llama_cpp.LlamaCpp(file) as server:
        for prompt, expected in meeting_an_end[:3]:
            cut = next(place for place, token in enumerate(expected) if token in ends)
            assert server.greedy(prompt, 20) == expected
            assert server.greedy(prompt, 20, stop_at_end=True) == expected[: cut + 1]


def test_refusals_carry_llama_cpps_reason(file: Path, tmp_path: Path) -> None:
    with llama_cpp.LlamaCpp(file) as server:
        with pytest.raises(MifyError, match="exceeds the available context size"):
            server.greedy([200] * 500, 1)
        with pytest.raises(MifyError, match="/nothing"):
            server.request("/nothing", {})
    with pytest.raises(MifyError, match="does not exist"):
        llama_cpp.LlamaCpp(tmp_path / "no.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(MifyError, match="does not load"):
        llama_cpp.LlamaCpp(tmp_path / "bad.gguf")


def test_without_the_package_it_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    with pytest.raises(MifyError, match=r"pip install 'mify\[llama-cpp\]'"):
        llama_cpp.LlamaCpp(file)
