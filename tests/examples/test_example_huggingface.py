"""The example for Hugging Face, with the real Trainer and a real (tiny) Llama."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from test_example_trainers import CONTEXT, ROWS, plain_stream

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")


def tiny_llama():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=640, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def trainer_of(example, rows, folder: Path, steps: int):  # type: ignore[no-untyped-def]
    module = example("huggingface_trainer")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=ROWS // 4,
        save_steps=2, logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, ignore_data_skip=True,
        learning_rate=1e-3, lr_scheduler_type="constant", save_only_model=False, seed=1,
    )  # fmt: skip
    return transformers.Trainer(
        tiny_llama(), arguments, train_dataset=rows, data_collator=module.collate,
        callbacks=[module.SaveStream(rows)],
    )  # fmt: skip


def losses(trainer) -> list[float]:  # type: ignore[no-untyped-def]
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_loss_is_that_of_the_documents_one_by_one(example, shards) -> None:  # type: ignore[no-untyped-def]
    """Labels, positions and the separation of documents, against the model run on every document alone."""
    module, model = example("huggingface_trainer"), tiny_llama().eval()
    rows = module.StreamRows(plain_stream(shards))
    given = module.collate(list(itertools.islice(rows, ROWS)))
    batch = next(iter(plain_stream(shards)))
    with torch.no_grad():
        loss = model(**given).loss
        total, bounds = 0.0, batch.cu_seqlens.unique().tolist()
        assert len(bounds) > ROWS + 3
        for start, end in itertools.pairwise(bounds):
            logits = model(input_ids=batch.tokens[None, start:end]).logits[0]
            labels = batch.labels[start:end]
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
    assert int((given["labels"] != -100).sum()) == batch.num_labels
    assert float(loss) == pytest.approx(total / batch.num_labels, rel=1e-4)


def test_the_trainer_resumes_exactly(example, shards, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    module = example("huggingface_trainer")
    whole = trainer_of(example, module.StreamRows(plain_stream(shards)), tmp_path / "whole", 4)
    whole.train()
    expected = losses(whole)
    assert len(expected) == 4
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    rows = module.StreamRows(plain_stream(shards))
    rows.resume(checkpoint)
    assert rows.stream.step == 2
    resumed = trainer_of(example, rows, tmp_path / "resumed", 4)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed)[-2:] == pytest.approx(expected[-2:], abs=1e-5)
    assert resumed.state.global_step == 4
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
