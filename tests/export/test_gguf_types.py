"""Types of tensors and their encoding, against `gguf`'s own quantizers and llama.cpp's rules."""

from __future__ import annotations

import pytest
import torch

from mify.errors import MifyError
from mify.export import gguf_types, llama_cpp

gguf = pytest.importorskip("gguf")


def kind(name: str, dtype: str, layer: int = -1, columns: int = 512, tied: bool = False, group: int = 2) -> str:
    return gguf_types.tensor_type(
        name, (64, columns), dtype, layer=layer, num_layers=16, queries_per_kv=group, tied=tied
    )


def test_plain_dtypes_are_the_same_everywhere() -> None:
    for dtype, expected in (("f32", "F32"), ("f16", "F16"), ("BF16", "BF16"), ("Q8_0", "Q8_0"), ("q6_k", "Q6_K")):
        for name in ("token_embd.weight", "output.weight", "blk.3.attn_v.weight", "blk.3.ffn_down.weight"):
            assert kind(name, dtype, layer=3) == expected
    assert gguf_types.tensor_type("n", (512,), "q8_0", layer=0, num_layers=1, queries_per_kv=1, tied=False) == "F32"


def test_mixtures_follow_llama_cpp() -> None:
    # llama.cpp: layer < n/8 or layer >= 7n/8 or (layer - n/8) % 3 == 2 gets more bits; n = 16.
    more = {0, 1, 4, 7, 10, 13, 14, 15}
    for layer in range(16):
        for name in (f"blk.{layer}.attn_v.weight", f"blk.{layer}.ffn_down.weight"):
            assert kind(name, "q4_k_m", layer) == ("Q6_K" if layer in more else "Q4_K")
            assert kind(name, "q5_k_m", layer) == ("Q6_K" if layer in more else "Q5_K")
        assert kind(f"blk.{layer}.attn_v.weight", "q4_k_s", layer) == ("Q5_K" if layer < 4 else "Q4_K")
        assert kind(f"blk.{layer}.ffn_down.weight", "q4_k_s", layer) == ("Q5_K" if layer < 2 else "Q4_K")
        assert kind(f"blk.{layer}.attn_v.weight", "q3_k_m", layer) == ("Q5_K" if layer < 2 else "Q4_K")
        assert kind(f"blk.{layer}.ffn_down.weight", "q3_k_m", layer) == ("Q5_K" if layer < 1 else "Q4_K")
        assert kind(f"blk.{layer}.attn_q.weight", "q4_k_m", layer) == "Q4_K"
        assert kind(f"blk.{layer}.attn_output.weight", "q3_k_m", layer) == "Q4_K"
        assert kind(f"blk.{layer}.attn_v.weight", "q2_k", layer, group=4) == "Q4_K"
        assert kind(f"blk.{layer}.attn_v.weight", "q2_k", layer, group=2) == "Q3_K"
    assert kind("output.weight", "q4_k_m") == "Q6_K"
    assert kind("token_embd.weight", "q4_k_m") == "Q4_K"
    assert kind("token_embd.weight", "q4_k_m", tied=True) == "Q6_K"


@pytest.mark.parametrize(
    ("dtype", "columns", "expected"),
    [("q4_k_s", 288, "Q5_0"), ("q5_k_s", 288, "Q5_1"), ("q6_k", 288, "Q8_0"), ("q3_k_s", 288, "Q4_0"),
     ("q8_0", 288, "Q8_0"), ("q8_0", 40, "F16"), ("q4_k_s", 40, "F16")],
)  # fmt: skip
def test_rows_that_do_not_fit_get_a_narrower_type(dtype: str, columns: int, expected: str) -> None:
    assert kind("blk.9.attn_q.weight", dtype, 9, columns) == expected


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q5_1"])
def test_bytes_equal_those_of_gguf(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_types, "CHUNK_BYTES", 4 * 96 * 5)  # 5 rows at a time
    values = torch.randn(17, 96, generator=torch.Generator().manual_seed(0)) * 3
    values[3] = 0.0
    expected = gguf.quantize(values.numpy(), gguf.GGMLQuantizationType[name]).tobytes()
    assert b"".join(bytes(part) for part in gguf_types.encode(values, name, "t")) == expected
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    assert b"".join(bytes(part) for part in gguf_types.encode(values, name, "t")) == expected
    assert gguf_types.encoded_bytes((17, 96), name) == len(expected)


@pytest.mark.skipif(not llama_cpp.available(), reason="xllamacpp is not installed")
@pytest.mark.parametrize(
    ("name", "bound"), [("Q2_K", 0.31), ("Q3_K", 0.16), ("Q4_K", 0.075), ("Q5_K", 0.038), ("Q6_K", 0.019)]
)
def test_k_quants_come_back_within_their_error(name: str, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    whole = b"".join(bytes(part) for part in gguf_types.encode(values, name, "t"))
    monkeypatch.setattr(gguf_types, "CHUNK_BYTES", 4 * 512 * 7)
    assert b"".join(bytes(part) for part in gguf_types.encode(values, name, "t")) == whole
    import numpy as np

    stored = np.frombuffer(whole, dtype=np.uint8).reshape(64, -1)
    back = torch.from_numpy(gguf.dequantize(stored, gguf.GGMLQuantizationType[name]))
    assert float((back - values).square().mean().sqrt()) <= bound


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MifyError, match="unknown GGUF dtype 'q9'"):
        gguf_types.recipe("q9")
    with pytest.raises(MifyError, match="w has values that are not finite"):
        list(gguf_types.encode(torch.full((1, 256), float("nan")), "Q8_0", "w"))
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    with pytest.raises(MifyError, match="Q4_K is encoded by ggml"):
        list(gguf_types.encode(torch.zeros(1, 256), "Q4_K", "w"))
