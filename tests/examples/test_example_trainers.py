"""The examples for people who bring their own trainer, on small stand-ins of Megatron and torchtitan."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from mify.config import model_config
from mify.data.fim import FimConfig
from mify.data.stream import Source, TokenStream
from mify.model import Model

CONTEXT, ROWS = 128, 8


def plain_stream(shards: dict[str, tuple[str, float]], **options: object) -> TokenStream:
    sources = [Source(name, path, weight) for name, (path, weight) in shards.items()]
    given = {"context": CONTEXT, "rows_per_step": ROWS, "seed": 5, "fim": FimConfig(), **options}
    return TokenStream(sources, **given)  # type: ignore[arg-type]


def small_model() -> Model:
    shape = {"num_layers": 1, "hidden_size": 32, "head_dim": 16, "ffn_size": 48, "vocab_size": 640, "context": CONTEXT}
    return Model(model_config("mify-tiny", **shape))


class GptStandIn:
    """Called as Megatron's GPTModel: per-token losses of (1, T) labels."""

    def __init__(self) -> None:
        self.model = small_model()

    def __call__(self, tokens: Tensor, position_ids: Tensor, attention_mask: None, *, labels: Tensor,
                 packed_seq_params: dict) -> Tensor:  # type: ignore[type-arg]  # fmt: skip
        assert packed_seq_params["qkv_format"] == "thd"
        bounds, longest = packed_seq_params["cu_seqlens_q"], packed_seq_params["max_seqlen_q"]
        hidden = self.model(tokens[0], position_ids[0], bounds, longest)
        logits = self.model.logits(hidden)
        return torch.nn.functional.cross_entropy(logits.float(), labels[0], reduction="none")[None]


def test_megatron_trains_on_what_the_stream_gives(example, shards) -> None:  # type: ignore[no-untyped-def]
    megatron = example("megatron_style")
    stream = megatron.open_stream(shards, sequence_length=CONTEXT, global_batch_size=ROWS, seed=5)
    loader, _, _ = megatron.datasets_provider(stream, micro_batches=4)
    gpt = GptStandIn()
    for batch in itertools.islice(plain_stream(shards), 3):
        total, count = torch.zeros(()), 0
        for _ in range(4):
            losses, reduce = megatron.forward_step(loader, gpt)
            part, tokens, logged = reduce(losses)
            assert logged["lm loss"][1] == tokens
            total, count = total + part.detach(), count + int(tokens)
        expected, labelled = gpt.model.loss(batch)
        assert count == int(labelled) == batch.num_labels
        torch.testing.assert_close(total, expected.detach(), rtol=1e-4, atol=1e-3)


def test_megatron_resumes_exactly_on_other_ranks(example, shards) -> None:  # type: ignore[no-untyped-def]
    megatron = example("megatron_style")
    options = {"sequence_length": CONTEXT, "global_batch_size": ROWS, "seed": 5}
    loader = megatron.ExternalLoader(megatron.open_stream(shards, **options), micro_batches=2)
    for _ in range(5 * 2):
        next(loader)
    state = json.loads(json.dumps(loader.save_state()))
    expected = torch.cat([next(loader)["tokens"][0] for _ in range(2)])
    ranks = []
    for rank in range(2):
        stream = megatron.open_stream(shards, **options, data_parallel_rank=rank, data_parallel_size=2)
        resumed = megatron.ExternalLoader(stream)
        resumed.load_state(state)
        ranks.append(next(resumed)["tokens"][0])
    assert torch.equal(torch.cat(ranks), expected)


def titan_loader(example, shards, rank: int = 0, world_size: int = 1):  # type: ignore[no-untyped-def]
    options = {"seq_len": CONTEXT, "local_batch_size": 2, "global_batch_size": ROWS, "seed": 5}
    return example("torchtitan_style").MifyDataLoader(shards, dp_world_size=world_size, dp_rank=rank, **options)


def test_torchtitan_gets_the_streams_rows(example, shards) -> None:  # type: ignore[no-untyped-def]
    batches = iter(titan_loader(example, shards))
    for batch in itertools.islice(plain_stream(shards), 3):
        parts = [next(batches) for _ in range(ROWS // 2)]
        assert all(labels.shape == inputs["input"].shape == (2, CONTEXT) for inputs, labels in parts)
        for name, own in (("input", batch.tokens), ("positions", batch.positions)):
            assert torch.equal(torch.cat([inputs[name].flatten() for inputs, _ in parts]), own)
        assert torch.equal(torch.cat([labels.flatten() for _, labels in parts]), batch.labels)
        model = small_model()
        inputs, labels = parts[0]
        hidden = model(inputs["input"].flatten(), inputs["positions"].flatten(), inputs["cu_seqlens"], CONTEXT)
        assert torch.nn.functional.cross_entropy(model.logits(hidden), labels.flatten()).isfinite()


def test_torchtitan_resumes_through_dcp_on_other_ranks(example, shards, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    loader = titan_loader(example, shards)
    batches = iter(loader)
    for _ in range(3 * 4):
        next(batches)
    dcp.save({"dataloader": json.dumps(loader.state_dict())}, checkpoint_id=tmp_path, no_dist=True)
    expected = [next(batches)[0]["input"] for _ in range(4)]
    state = {"dataloader": ""}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    found = []
    for rank in range(4):
        resumed = titan_loader(example, shards, rank, 4)
        resumed.load_state_dict(json.loads(state["dataloader"]))
        found.append(next(iter(resumed))[0]["input"])
    assert torch.equal(torch.cat(found), torch.cat(expected))
    fresh = titan_loader(example, shards)
    fresh.load_state_dict({})
    assert torch.equal(next(iter(fresh))[0]["input"], next(iter(titan_loader(example, shards)))[0]["input"])
