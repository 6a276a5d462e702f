"""Others' generation with the same weights, prompts and threads: the rivals of `mify bench decode`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.bench.train_rivals import llama

if TYPE_CHECKING:
    from mify.model import Model


def installed(name: str) -> bool:
    """Whether a package can be imported here."""
    return util.find_spec(name) is not None


class Transformers:
    """`generate` of transformers, greedy, over a dynamic cache; prompts are padded on the left."""

    def __init__(self, model: Model) -> None:
        from transformers.utils import logging

        logging.set_verbosity_error()
        self._model: Any = llama(model).eval().to(model.head_weight.device)
        self._model.config.use_cache = True
        self._model.generation_config.use_cache = True

    def __call__(self, prompts: Sequence[Sequence[int]], new: int, guesses: int | None = None) -> list[list[int]]:
        """The new tokens. guesses: of its own prompt lookup, which takes one prompt."""
        import torch

        longest = max(map(len, prompts))
        device = self._model.device
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        out = self._model.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0,
            prompt_lookup_num_tokens=guesses,
        )  # fmt: skip
        answers: list[list[int]] = out[:, longest:].tolist()
        return answers


def vllm_rate(model: Model, prompts: Sequence[Sequence[int]], new: int, *, fp8: bool) -> float:
    """New tokens a second of vLLM's offline engine on the exported model, the second of two runs.

    In a process of its own, since vLLM takes a GPU's memory for itself. Raises RuntimeError with what it said.
    """
    from mify.export.hf import export_hf

    with tempfile.TemporaryDirectory(prefix="mify-bench-vllm-") as temporary:
        folder = export_hf(model, Path(temporary) / "model")
        job = {"model": str(folder), "prompts": [list(p) for p in prompts], "new": new, "fp8": fp8}
        (Path(temporary) / "job.json").write_text(json.dumps(job), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", _VLLM, str(Path(temporary) / "job.json")],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "vLLM ended without a word")
    return float(done.stdout.strip().splitlines()[-1])


_VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
job = json.load(open(sys.argv[1]))
engine = LLM(model=job["model"], skip_tokenizer_init=True, gpu_memory_utilization=0.85,
             quantization="fp8" if job["fp8"] else None, kv_cache_dtype="fp8" if job["fp8"] else "auto")
how = SamplingParams(temperature=0, max_tokens=job["new"], ignore_eos=True, detokenize=False)
prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
for _ in range(2):
    start = time.perf_counter()
    answers = engine.generate(prompts, how, use_tqdm=False)
    seconds = time.perf_counter() - start
print(sum(len(answer.outputs[0].token_ids) for answer in answers) / seconds)
"""
