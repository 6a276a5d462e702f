"""Attention by libraries of others: without a GPU how they are called, with stand-ins; with one, their numbers.

A stand-in has the signature of the real function, word for word, and computes what its documentation says in plain
torch. So a wrong name, a window off by one or a forgotten scale shows here; the library's own faults do not.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mify.kernels import dispatch, gqa_attention, last_impl
from mify.kernels.attention import gqa_libraries
from mify.testing import compare, cu_seqlens_of, layouts

LIBRARIES = ("cudnn", "fa2", "fa3", "fa4", "torch_flash")
calls: list[dict[str, Any]] = []


def _by_document(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, left: int | None, right: int | None, scale: float | None
) -> Tensor:
    """What flash-attn documents: query i sees keys i − left … i + right of its own document; None or −1 is all."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    parts = []
    for start, end in zip(bounds.tolist()[:-1], bounds.tolist()[1:], strict=True):
        assert end > start, "an empty document was passed on"
        a, b, c = (x[start:end].transpose(0, 1) for x in (q, k, v))
        b, c = (x.repeat_interleave(q.shape[1] // k.shape[1], 0) for x in (b, c))
        distance = torch.arange(end - start)[None, :] - torch.arange(end - start)[:, None]
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if left is not None and left >= 0:
            hidden |= distance < -left
        if right is not None and right >= 0:
            hidden |= distance > right
        scores = (a @ b.transpose(1, 2) * scale).masked_fill(hidden, -math.inf)
        parts.append((torch.softmax(scores, -1) @ c).transpose(0, 1))
    return torch.cat(parts)


def _record(values: dict[str, Any], **expected: Any) -> None:
    """Remembers a call, and holds what a real kernel would read outside its memory or get wrong."""
    for name in ("q", "k", "v"):
        x = values[name]
        assert x.stride(-1) == 1, f"{name} has strides {x.stride()}"
        assert all(s * x.element_size() % 16 == 0 for s in x.stride()[:-1]), f"rows of {name} are not at 16 bytes"
    bounds = values["cu_seqlens_q"]
    assert bounds.dtype == torch.int32
    assert bounds.is_contiguous()
    assert values["max_seqlen_q"] == values["max_seqlen_k"] == int(bounds.diff().max())
    assert all(values[name] == value for name, value in expected.items())
    calls.append(values)


def fa2(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None):  # type: ignore[no-untyped-def]  # fmt: skip
    """flash-attn 2.8.3."""
    _record(locals(), dropout_p=0.0, return_attn_probs=False)
    return _by_document(q, k, v, cu_seqlens_q, window_size[0], 0 if causal else window_size[1], softmax_scale)


def fa3(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False):  # type: ignore[no-untyped-def]  # fmt: skip
    """flash-attention's hopper/flash_attn_interface.py."""
    _record(locals())
    return _by_document(q, k, v, cu_seqlens_q, window_size[0], 0 if causal else window_size[1], softmax_scale)


def fa3_of_old(*arguments, **named):  # type: ignore[no-untyped-def]
    """It returned the normalizers too."""
    return fa3(*arguments, **named), torch.zeros(1)


def fa4(q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None,
        softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1,
        pack_gqa=None, deterministic=False, score_mod=None, score_mod_bwd=None, mask_mod=None,
        block_sparse_tensors=None, aux_tensors=None, aux_scalars=None, return_lse=False, scheduler_metadata=None,
        seqlen_k_per_split=None, disable_scheduler_metadata=False, gather_bwd_recompute_p=False,
        gather_bwd_token_chunk=None):  # type: ignore[no-untyped-def]  # fmt: skip
    """flash-attn-4 4.0.0b36."""
    _record(locals())
    right = 0 if causal else window_size[1]
    return _by_document(q, k, v, cu_seqlens_q, window_size[0], right, softmax_scale), None


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
                window_size=(-1, -1), enable_gqa=False, seqused_k=None, block_table=None,
                num_splits=None):  # type: ignore[no-untyped-def]  # fmt: skip
    """torch 2.12 and 2.13, whose own signature is compared below."""
    _record({"q": query, "k": key, "v": value, "cu_seqlens_q": cu_seq_q, "max_seqlen_q": max_q,
             "max_seqlen_k": max_k, "deterministic": False})  # fmt: skip
    assert enable_gqa or query.shape[1] == key.shape[1]
    return _by_document(query, key, value, cu_seq_q, *window_size, scale)


def varlen_attn_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
                     window_size=(-1, -1)):  # type: ignore[no-untyped-def]  # fmt: skip
    return varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size,
                       enable_gqa=True)  # fmt: skip


def varlen_attn_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False,
                     return_aux=None):  # type: ignore[no-untyped-def]  # fmt: skip
    window = (-1, 0) if is_causal else (-1, -1)
    return varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window, enable_gqa=True)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    calls.clear()
    gqa_libraries.function.cache_clear()
    if not torch.cuda.is_available():
        for name, function in (("flash_attn", fa2), ("flash_attn_interface", fa3), ("flash_attn.cute", fa4),
                               ("torch.nn.attention.varlen", varlen_attn)):  # fmt: skip
            module = ModuleType(name)
            setattr(module, "varlen_attn" if function is varlen_attn else "flash_attn_varlen_func", function)
            monkeypatch.setitem(sys.modules, name, module)
    yield
    gqa_libraries.function.cache_clear()


def run(backend: str, bounds: Tensor, causal: bool, window: int, scale: float, deterministic: bool = False):  # type: ignore[no-untyped-def]
    docs = gqa_libraries.documents(bounds, bounds.tolist(), int(bounds.diff().max()))
    return lambda q, k, v: gqa_libraries.attention(backend, q, k, v, docs, causal, window, scale, deterministic)


def plain(bounds: Tensor, causal: bool, window: int, scale: float) -> Callable[..., Tensor]:
    from mify.kernels.attention import gqa_ref

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = []
        for start, end in zip(bounds.tolist()[:-1], bounds.tolist()[1:], strict=True):
            a, b, c = (x[start:end].transpose(0, 1) for x in (q, k, v))
            b, c = (x.repeat_interleave(q.shape[1] // k.shape[1], 0) for x in (b, c))
            mask = gqa_ref.visible(end - start, causal, window, q.device)
            scores = (a @ b.transpose(1, 2) * scale).masked_fill(~mask, -math.inf)
            parts.append((torch.softmax(scores, -1) @ c).transpose(0, 1))
        return torch.cat(parts)

    return attention


@pytest.mark.skipif(torch.cuda.is_available(), reason="stand-ins; on a GPU the real ones run")
@pytest.mark.parametrize("backend", [name for name in LIBRARIES if name != "cudnn"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 7])
def test_what_is_asked_for_is_what_is_meant(backend: str, causal: bool, window: int) -> None:
    bounds = cu_seqlens_of([20, 0, 1, 30, 0], padding=3)
    for heads, kv_heads, scale in ((4, 2, 0.25), (3, 3, 1.0)):
        q, k, v = (torch.randn(51, n, 16) for n in (heads, kv_heads, kv_heads))
        compare(run(backend, bounds, causal, window, scale), plain(bounds, causal, window, scale), (q, k, v))
    assert all(call["cu_seqlens_q"].tolist() == [0, 20, 21, 51] for call in calls)


@pytest.mark.skipif(torch.cuda.is_available(), reason="stand-ins; on a GPU the real ones run")
@pytest.mark.parametrize("backend", ["fa2", "fa3", "fa4"])
def test_determinism_is_passed_on(backend: str) -> None:
    bounds = cu_seqlens_of([5, 3])
    q = torch.randn(8, 2, 16)
    for wanted in (True, False):
        run(backend, bounds, True, 0, 0.25, deterministic=wanted)(q, q, q)
        assert calls[-1]["deterministic"] is wanted


@pytest.mark.skipif(torch.cuda.is_available(), reason="stand-ins; on a GPU the real ones run")
@pytest.mark.parametrize("backend", [name for name in LIBRARIES if name != "cudnn"])
def test_layouts_that_a_library_could_not_read_are_copied(backend: str) -> None:
    bounds = cu_seqlens_of([12, 7])
    q, k, v = (torch.randn(19, n, 16, dtype=torch.float16) for n in (4, 2, 2))
    expected = run(backend, bounds, True, 0, 0.25)(q, k, v)
    for (name, a), (_, b), (_, c) in zip(layouts(q), layouts(k), layouts(v), strict=True):
        torch.testing.assert_close(run(backend, bounds, True, 0, 0.25)(a, b, c), expected, msg=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="stand-ins; on a GPU the real ones run")
def test_older_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = cu_seqlens_of([12, 7])
    q, k, v = (torch.randn(19, n, 16) for n in (4, 2, 2))
    expected = plain(bounds, True, 0, 0.25)(q, k, v)
    for backend, module, name, function in (
        ("fa3", "flash_attn_interface", "flash_attn_varlen_func", fa3_of_old),
        ("torch_flash", "torch.nn.attention.varlen", "varlen_attn", varlen_attn_2_11),
        ("torch_flash", "torch.nn.attention.varlen", "varlen_attn", varlen_attn_2_10),
    ):
        gqa_libraries.function.cache_clear()
        monkeypatch.setattr(sys.modules[module], name, function)
        torch.testing.assert_close(run(backend, bounds, True, 0, 0.25)(q, k, v), expected)
    with pytest.raises(ValueError, match=r"from torch 2\.11"):
        run("torch_flash", bounds, True, 3, 0.25)(q, k, v)


def test_the_signature_of_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.nn.attention.varlen", raising=False)
    real = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    ours, theirs = (list(inspect.signature(f).parameters.values()) for f in (varlen_attn, real))
    if "enable_gqa" not in inspect.signature(real).parameters:
        ours = list(inspect.signature(varlen_attn_2_11).parameters.values())
    found = {p.name: (p.kind, p.default) for p in theirs}
    assert all(found[p.name] == (p.kind, p.default) for p in ours)


def test_cudnn_sees_documents_of_one_length_as_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN itself does not run here: torch's own kernel stands in for it, below the public function."""
    from torch.nn.functional import scaled_dot_product_attention

    from mify.kernels.attention import gqa_cudnn

    monkeypatch.setattr(gqa_cudnn, "load", lambda: scaled_dot_product_attention)
    bounds = cu_seqlens_of([12, 0, 12, 12], padding=2)
    for heads, kv_heads, causal in ((4, 2, True), (2, 2, False)):
        q, k, v = (torch.randn(36, n, 16) for n in (heads, kv_heads, kv_heads))
        compare(run("cudnn", bounds, causal, 0, 0.5), plain(bounds, causal, 0, 0.5), (q, k, v), factor=4.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_cudnn_is_held_to_cudnn() -> None:
    from mify.kernels.attention import gqa_cudnn

    q = torch.randn(1, 2, 8, 16)
    with pytest.raises(RuntimeError, match="[Nn]o (available|viable) (kernel|backend)"):
        gqa_cudnn.load()(q, q, q, is_causal=True)


@pytest.mark.parametrize("backend", LIBRARIES)
def test_tensors_on_a_cpu_are_refused_by_name(backend: str) -> None:
    q = torch.zeros(8, 2, 16)
    with pytest.raises(ValueError, match=f"impl '{backend}' of 'gqa' cannot run here: it runs on a GPU"):
        gqa_attention(q, q, q, cu_seqlens_of([8]), 8, impl=backend)


@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "sizes", "words"),
    [
        ("fa3", (8, 0), torch.bfloat16, {}, "for Hopper"),
        ("fa3", (10, 0), torch.bfloat16, {}, "for Hopper"),
        ("fa4", (8, 0), torch.bfloat16, {}, "capability 9.0, this GPU has 8.0"),
        ("fa4", (10, 0), torch.bfloat16, {"head_dim": 192}, "up to 128"),
        ("fa2", (7, 5), torch.bfloat16, {}, "capability 8.0"),
        ("fa2", (8, 0), torch.float32, {}, "takes float16 and bfloat16"),
        ("fa2", (8, 0), torch.float16, {"head_dim": 20}, "multiple of 8 up to 256, not 20"),
        ("fa2", (8, 0), torch.float16, {"tokens": 0}, "no tokens"),
        ("torch_flash", (9, 0), torch.float16, {"deterministic": 1}, "deterministic"),
        ("cudnn", (9, 0), torch.float16, {"deterministic": 1}, "deterministic"),
        ("cudnn", (9, 0), torch.float16, {"window": 3}, "no sliding window"),
        ("cudnn", (9, 0), torch.float16, {"equal_lengths": 0}, "documents of one length"),
        ("cudnn", (9, 0), torch.float16, {"head_dim": 256}, "up to 128"),
    ],
)
def test_what_a_library_cannot_do_is_said(
    backend: str, capability: tuple[int, int], dtype: torch.dtype, sizes: dict[str, int], words: str
) -> None:
    shape = {"tokens": 64, "head_dim": 128, "window": 0, "deterministic": 0, "equal_lengths": 1} | sizes
    with pytest.raises(ValueError, match=words):
        dispatch.choose("gqa", f"gqa={backend}", dispatch.Device("cuda", capability), dtype, shape)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if tensors lay on a Hopper GPU, with whatever packages."""
    monkeypatch.setattr(
        dispatch, "describe", lambda device: dispatch.Device("cuda", (9, 0), dict(dispatch._broken), "a GPU")
    )
    monkeypatch.setattr(dispatch, "_broken", {})
    monkeypatch.setattr("mify.kernels.attention.gqa._has_values", lambda x: True)
    monkeypatch.setattr("mify.kernels.attention.gqa.LONG_DOCUMENTS", 8)


@pytest.mark.usefixtures("hopper")
def test_a_package_that_cannot_be_loaded_is_left_out_once_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first choice fails to load, so the next runs; who asks for it by name gets the reason."""
    from mify.kernels.attention import gqa_fa3

    def broken() -> Callable[..., Any]:
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(gqa_fa3, "load", broken)
    monkeypatch.setattr(gqa_libraries.modules()["fa4"], "load", lambda: fa4)
    q = torch.randn(21, 2, 16, dtype=torch.bfloat16)
    gqa_attention(q, q, q, cu_seqlens_of([9, 12]), 16)
    assert last_impl("gqa") == "fa4"
    assert "undefined symbol" in dispatch._broken["fa3"]
    with pytest.raises(ValueError, match="'fa3' of 'gqa' cannot run here: ImportError: undefined symbol"):
        gqa_attention(q, q, q, cu_seqlens_of([9, 12]), 16, impl="fa3")


@pytest.mark.usefixtures("hopper")
def test_a_library_that_refuses_is_left_out_once_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rules are its own: what it refuses goes to the next, unless it was asked for by name or memory is full."""
    from mify.kernels.attention import gqa_fa3

    trouble: list[Exception] = [RuntimeError("No available kernel. Aborting execution.")]

    def refusing(*arguments: Any, **named: Any) -> Tensor:
        raise trouble[0]

    monkeypatch.setattr(gqa_fa3, "load", lambda: refusing)
    monkeypatch.setattr(gqa_libraries.modules()["fa4"], "load", lambda: fa4)
    q, bounds = torch.randn(21, 2, 16, dtype=torch.bfloat16), cu_seqlens_of([9, 12])
    with pytest.raises(ValueError, match="'fa3' of 'gqa' cannot run here: RuntimeError: No available kernel"):
        gqa_attention(q, q, q, bounds, 16, impl="gqa=fa3")
    trouble[0] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        gqa_attention(q, q, q, bounds, 16)
    trouble[0] = AssertionError("head_dim")
    out = gqa_attention(q, q, q, bounds, 16)
    assert last_impl("gqa") == "fa4"
    torch.testing.assert_close(out, plain(bounds, True, 0, 0.25)(q, q, q), rtol=2e-2, atol=2e-2)
    assert "head_dim" in dispatch._broken["fa3"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="stand-ins; on a GPU the real ones run")
def test_inside_the_op_a_library_runs_again_for_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a compiled graph the op is all there is. Only the door that keeps CPU tensors out is opened here."""
    monkeypatch.setattr("mify.kernels.attention.gqa._backend", lambda impl, q, shape: "fa2")
    bounds = cu_seqlens_of([20, 0, 11])
    q, k, v = (torch.randn(31, n, 16) for n in (4, 2, 2))
    compare(lambda q, k, v: gqa_attention(q, k, v, bounds, 32, window=5), plain(bounds, True, 5, 0.25), (q, k, v))
    compiled = torch.compile(
        lambda q, k, v: gqa_attention(q, k, v, bounds, 32, window=5), backend="aot_eager", fullgraph=True
    )
    torch._dynamo.reset()
    compare(compiled, plain(bounds, True, 5, 0.25), (q, k, v))
    assert len(calls) == 4


# --------------------------------------------------------------------------------------------------------- on a GPU


def installed(backend: str) -> str:
    """Why the backend is not there, or ""."""
    reason = dispatch.describe(torch.device("cuda", 0)).missing.get(backend, "")
    return reason or gqa_libraries.function(backend)[1]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", LIBRARIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "dim", "causal", "window", "deterministic"),
    [
        ([512, 512, 512], 20, 4, 128, True, 0, False),
        ([256, 256], 4, 4, 64, False, 0, False),
        ([700, 0, 1, 33, 1000], 20, 4, 128, True, 0, False),
        ([700, 0, 1, 33, 1000], 8, 2, 64, True, 0, True),
        ([300, 77], 4, 2, 64, True, 40, False),
        ([300, 77], 4, 2, 128, False, 40, False),
    ],
)
def test_on_a_gpu(
    backend: str,
    dtype: torch.dtype,
    lengths: list[int],
    heads: int,
    kv_heads: int,
    dim: int,
    causal: bool,
    window: int,
    deterministic: bool,
) -> None:
    if reason := installed(backend):
        pytest.skip(reason)
    bounds = cu_seqlens_of(lengths, padding=2, device="cuda")
    q, k, v = (torch.randn(sum(lengths), n, dim, device="cuda").to(dtype) for n in (heads, kv_heads, kv_heads))

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return gqa_attention(
            q, k, v, bounds, 1024, causal=causal, window=window, deterministic=deterministic, impl=backend
        )

    try:
        dispatch.choose(
            "gqa", f"gqa={backend}", dispatch.describe(q.device), dtype,
            {"tokens": len(q), "head_dim": dim, "window": window, "deterministic": int(deterministic),
             "equal_lengths": int(len({n for n in lengths if n}) == 1)},
        )  # fmt: skip
    except ValueError as refusal:
        with pytest.raises(ValueError, match="cannot run here"):
            ours(q, k, v)
        pytest.skip(str(refusal))
    try:
        ours(q, k, v)
    except ValueError as refusal:
        # What cuDNN takes differs by its version, and only it knows.
        if backend != "cudnn":
            raise
        pytest.skip(str(refusal))
    compare(ours, plain(bounds, causal, window, dim**-0.5), (q, k, v))
    assert last_impl("gqa") == backend
