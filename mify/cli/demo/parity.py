"""Exports against the model they were made from, by the engines that load them: `transformers` and llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mify.model import Model

PLAIN = "gqa=sdpa,norm=ref,rope=ref,glu=ref,linear_ce=ref"  # torch's own ops


def check_hf(model: Model, folder: Path, prompt: str) -> dict[str, Any]:
    """Logits of `transformers` on `prompt` against the model's, in fp32, and the token ids of its tokenizer.

    Both through torch's own ops: the same weights give the same bits. What our kernels' other order of summation makes
    of it is told beside.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from mify.model import Model

    logging.disable_progress_bar()  # ours is on the screen
    ids = model.require_tokenizer().encode(prompt)
    other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = Model(model.config, impl=PLAIN).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        theirs = other(torch.tensor([ids])).logits[0]
        difference = float((theirs - logits(plain, ids)).abs().max())
        with_kernels = float((theirs - logits(model, ids)).abs().max())
    same_ids = AutoTokenizer.from_pretrained(folder)(prompt, add_special_tokens=False)["input_ids"] == ids
    equal = same_ids and difference <= 1e-5
    return {
        "difference": difference,
        "difference_with_kernels": with_kernels,
        "tokens": len(ids),
        "same_ids": same_ids,
        "equal": equal,
        "verdict": f"transformers: {'equal' if equal else 'DIFFERENT'} logits (largest difference {difference:.0e}, "
        f"{with_kernels:.0e} through mify's kernels)",
    }


def check_gguf(model: Model, file: Path, prompt: str, count: int) -> dict[str, Any]:
    """Greedy tokens of llama.cpp on `prompt` against the model's."""
    from mify.export.llama_cpp import available, greedy_tokens
    from mify.generate import generate

    if not available():
        return {"equal": None, "verdict": "llama.cpp: not measured (pip install 'mify[llama-cpp]')"}
    ids = model.require_tokenizer().encode(prompt)
    ours = generate(model, [ids], max_new_tokens=count)[0]
    theirs = greedy_tokens(file, prompt, count)[: len(ours)]
    matching = sum(a == b for a, b in zip(ours, theirs, strict=False))
    equal = ours == theirs
    return {
        "equal": equal,
        "matching": matching,
        "of": len(ours),
        "verdict": f"llama.cpp: {matching} of {len(ours)} greedy tokens equal",
    }


def logits(model: Model, ids: list[int]) -> Any:
    """(len(ids), vocabulary) logits of the model on one sequence."""
    import torch

    count = len(ids)
    hidden = model(torch.tensor(ids), torch.arange(count), torch.tensor([0, count], dtype=torch.int32), count)
    return model.logits(hidden)
