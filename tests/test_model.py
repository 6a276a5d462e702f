"""The model against transformers' Llama, packed documents against single ones, and its training signal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mify.config import ModelConfig, model_config
from mify.errors import MifyError
from mify.model import Model


def small(**changes: Any) -> ModelConfig:
    values = {"num_layers": 2, "hidden_size": 48, "head_dim": 16, "ffn_size": 80, "vocab_size": 199, "context": 64}
    return model_config("mify-tiny", **{**values, **changes})


def llama(model: Model) -> Any:
    """transformers' Llama with the weights of `model`."""
    transformers = pytest.importorskip("transformers")
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.ffn_size,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_query_heads,
        num_key_value_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        rms_norm_eps=c.rms_norm_eps,
        max_position_embeddings=c.context,
        tie_word_embeddings=c.tie_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
    )
    rival = transformers.LlamaForCausalLM(config).eval()
    missing, unexpected = rival.load_state_dict(model.state_dict(), strict=False)
    assert missing == (["lm_head.weight"] if c.tie_embeddings else [])
    assert unexpected == []
    return rival


def packed(lengths: list[int], vocab: int, seed: int = 0, padding: int = 2) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab, (sum(lengths),), generator=generator)
    labels = torch.randint(0, vocab, (sum(lengths),), generator=generator)
    labels[::5] = -100
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    return SimpleNamespace(
        tokens=tokens,
        labels=labels,
        positions=torch.cat([torch.arange(n) for n in lengths]),
        cu_seqlens=torch.tensor(bounds + [bounds[-1]] * padding, dtype=torch.int32),
        max_seqlen=64,
    )


def run(model: Model, batch: SimpleNamespace) -> torch.Tensor:
    return model.logits(model(batch.tokens, batch.positions, batch.cu_seqlens, batch.max_seqlen))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_logits_and_gradients_equal_transformers(tie: bool, heads: tuple[int, int]) -> None:
    config = small(tie_embeddings=tie, num_query_heads=heads[0], num_kv_heads=heads[1], rope_theta=5e5)
    model = Model(config, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at the start, so that every part matters
            parameter.mul_(4) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    rival = llama(model)
    batch = packed([40], config.vocab_size)
    ours = run(model, batch)
    theirs = rival(batch.tokens[None]).logits[0]
    assert (ours - theirs).abs().max() <= 1e-5

    loss, count = model.loss(batch)
    expected = F.cross_entropy(theirs, batch.labels, reduction="sum")
    assert count == (batch.labels != -100).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-4)
    loss.backward()
    expected.backward()
    rival_grads = {name: p.grad for name, p in rival.named_parameters()}
    for name, parameter in model.named_parameters():
        scale = rival_grads[name].abs().max()
        assert (parameter.grad - rival_grads[name]).abs().max() <= 1e-5 * scale, name


def test_packed_documents_equal_documents_alone() -> None:
    config = small()
    model = Model(config, seed=1)
    lengths = [7, 64, 1, 30, 64]
    batch = packed(lengths, config.vocab_size)
    together = run(model, batch)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = SimpleNamespace(
            tokens=batch.tokens[part],
            positions=batch.positions[part],
            cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
            max_seqlen=64,
        )
        torch.testing.assert_close(together[part], run(model, alone), rtol=0, atol=2e-6)
        start += length


def test_a_zero_length_document_changes_nothing() -> None:
    config = small()
    model = Model(config)
    batch = packed([5, 9], config.vocab_size)
    with_empty = SimpleNamespace(**{**vars(batch), "cu_seqlens": torch.tensor([0, 0, 5, 5, 14, 14], dtype=torch.int32)})
    assert torch.equal(run(model, batch), run(model, with_empty))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = small()
    first, second, other = Model(config, seed=5), Model(config, seed=5), Model(config, seed=6)
    torch.manual_seed(0)
    state = second.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.head_weight, other.head_weight)
    assert abs(first.model.embed_tokens.weight.std().item() - 0.02) < 1e-3
    loss, count = first.loss(packed([60], config.vocab_size))
    assert abs(loss.item() / count.item() - torch.tensor(float(config.vocab_size)).log().item()) < 0.1


def test_a_few_steps_learn_one_batch() -> None:
    config = small()
    model = Model(config)
    batch = packed([30, 34], config.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss, count = model.loss(batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item() / count.item())
    assert losses[-1] < 0.2 * losses[0]


def test_z_loss_reaches_the_loss() -> None:
    config = small()
    model = Model(config)
    batch = packed([20], config.vocab_size)
    plain, _ = model.loss(batch)
    with_z, _ = model.loss(batch, z_loss=0.1)
    labelled = batch.labels != -100
    lse = torch.logsumexp(run(model, batch)[labelled], -1)
    torch.testing.assert_close(with_z - plain, 0.1 * lse.square().sum(), rtol=1e-4, atol=1e-4)


def test_a_model_without_tokenizer_says_so() -> None:
    with pytest.raises(MifyError, match="no tokenizer"):
        Model(small()).generate("x")
    with pytest.raises(MifyError, match="no tokenizer"):
        Model(small()).infill("x", "y")
