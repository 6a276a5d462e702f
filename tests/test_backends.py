"""The whole model on every set of backends of this machine, chosen by argument and by MIFY_IMPL: one result."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mify.config import model_config
from mify.data.batch import PackedBatch
from mify.generate import generate
from mify.kernels import dispatch, last_impl
from mify.kernels.attention import gqa_libraries
from mify.model import Model
from mify.testing import cu_seqlens_of

OPS = ("gqa", "norm", "rope", "glu", "linear_ce")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]


def model(impl: str = "auto", head_dim: int = 16, **changes: int) -> Model:
    config = model_config(
        "mify-tiny", num_layers=2, hidden_size=64, head_dim=head_dim, num_query_heads=4, num_kv_heads=2, ffn_size=96,
        vocab_size=120, context=64, **changes,
    )  # fmt: skip
    made = Model(config, seed=1, impl=impl)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # so that tokens differ
    return made


def batch(device: str = "cpu") -> PackedBatch:
    generator = torch.Generator().manual_seed(0)
    lengths = [30, 1, 33, 64]
    labels = torch.randint(0, 120, (128,), generator=generator)
    labels[::5] = -100
    return PackedBatch(
        torch.randint(0, 120, (128,), generator=generator), labels, torch.cat([torch.arange(n) for n in lengths]),
        cu_seqlens_of(lengths, padding=3), 64,
    ).to(device)  # fmt: skip


def outcome(made: Model, device: str = "cpu") -> tuple[list[Tensor], dict[str, str | None]]:
    """Loss and gradients, and which backend ran each op."""
    loss, count = made.loss(batch(device))
    (loss / count).backward()
    ran = {op: last_impl(op) for op in OPS}
    gradients = [p.grad for p in made.parameters() if p.grad is not None]
    assert len(gradients) == len(list(made.parameters()))
    return [loss.detach(), *gradients], ran


def expected(op: str, impl: str) -> str:
    """Of a set that names one backend, the ops that do not have it stay automatic."""
    names = [backend.name for backend in dispatch.ops()[op]]
    return impl if impl in names else names[0]


@pytest.mark.parametrize("impl", ["cpu", "sdpa", "ref"])
@pytest.mark.parametrize("by", ["argument", "variable"])
def test_one_set_one_result(impl: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIFY_IMPL", raising=False)
    wanted, _ = outcome(model("ref"))
    if by == "variable":
        monkeypatch.setenv("MIFY_IMPL", impl)
    made = model(impl if by == "argument" else "auto")
    got, ran = outcome(made)
    assert ran == {op: expected(op, impl) for op in OPS}
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    monkeypatch.delenv("MIFY_IMPL", raising=False)
    tokens = generate(model("ref"), PROMPTS, max_new_tokens=20)
    if by == "variable":
        monkeypatch.setenv("MIFY_IMPL", impl)
    assert generate(made, PROMPTS, max_new_tokens=20) == tokens
    assert last_impl("gqa_decode") == ("ref" if impl == "ref" else "cpu")


def test_a_set_that_names_ops_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIFY_IMPL", "gqa=sdpa,norm=ref")
    _, ran = outcome(model())
    assert ran == {"gqa": "sdpa", "norm": "ref", "rope": "cpu", "glu": "cpu", "linear_ce": "cpu"}
    _, ran = outcome(model("ref"))
    assert set(ran.values()) == {"ref"}, "the argument goes before the variable"


@pytest.mark.parametrize(
    ("impl", "words"),
    [("fa3", "'fa3' of 'gqa' cannot run here"), ("gqa=warp", "no backend of 'gqa'"), ("gaq=ref", "unknown op 'gaq'")],
)
def test_a_set_that_cannot_be(impl: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=words):
        outcome(model(impl))
    monkeypatch.setenv("MIFY_IMPL", impl)
    with pytest.raises(ValueError, match=words):
        outcome(model())


# --------------------------------------------------------------------------------------------------------- on a GPU

SETS: Mapping[str, torch.dtype] = {
    "auto": torch.bfloat16, "triton": torch.float32, "triton ": torch.bfloat16, "ref": torch.float32,
    **dict.fromkeys(("gqa=cudnn", "gqa=fa2", "gqa=fa3", "gqa=fa4", "gqa=torch_flash"), torch.bfloat16),
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("impl", SETS)
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(impl: str, compiled: bool) -> None:
    """Against plain torch on the CPU in fp32; bfloat16 within what bfloat16 costs plain torch."""
    dtype, impl = SETS[impl], impl.strip()
    wanted, _ = outcome(model("ref", head_dim=64))
    made = model(impl, head_dim=64).to("cuda", dtype)
    name = impl.partition("=")[2]
    if name:
        missing = dispatch.describe(torch.device("cuda", 0)).missing.get(name, "")
        if missing or gqa_libraries.function(name)[1]:
            pytest.skip(missing or gqa_libraries.function(name)[1])
    if name == "cudnn":
        pytest.skip("it is for documents of one length, and these are ragged")
    if compiled:
        torch._dynamo.reset()
        made.loss = torch.compile(made.loss, fullgraph=True, dynamic=False)  # type: ignore[method-assign]
    got, ran = outcome(made, "cuda")
    if name:
        assert ran["gqa"] == name
    elif impl != "auto":
        assert set(ran.values()) == {impl}
    plain, _ = outcome(model("ref", head_dim=64).to(dtype))
    for a, b, exact in zip(got, plain, wanted, strict=True):
        ours, theirs = ((x.float().cpu() - exact).norm().item() for x in (a, b))
        assert ours <= 2 * theirs + 1e-4 * exact.norm().item() + 1e-5
