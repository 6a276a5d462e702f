"""Grouped-query attention of one new token a sequence against its cached keys and values.

out_bh = Σ_s softmax_s(scale · q_bh·k_bs) v_bs over the lengths[b] keys of sequence b, query head h reading key/value
head h // (Hq / Hkv). The cache is contiguous, (B, S, Hkv, D), or paged: (pages, page_size, Hkv, D) with a table of
page ids, so that sequences of any length share one pool (Kwon et al. 2023, arXiv 2309.06180). An FP8 cache carries one
scale for each key/value head: the key is k · k_scale, the value v · v_scale.

Memory is the limit, so every cached byte is read once for all query heads of its group; long sequences are split over
blocks (Flash-Decoding, Dao et al. 2023) and the block that ends last combines them. Statistics and sums are fp32.
"""

from __future__ import annotations

import importlib.util
import math

import torch
from torch import Tensor

from mify.kernels import checks, dispatch, launch

from . import gqa_decode_ref, gqa_paged_cpu

# Keys that a split takes at least, and splits of a sequence at most: those of csrc/attention/gqa_decode_kernel.cuh.
SPLIT_UNIT, MAX_SPLITS = 64, 128
FP8 = torch.float8_e4m3fn


def choose_splits(batch: int, kv_heads: int, keys: int, processors: int, blocks_a_processor: int = 2) -> int:
    """Into how many parts the keys of a sequence are split so that the blocks fill the GPU; 1 to `MAX_SPLITS`.

    The fewest splits whose last wave of blocks leaves at most 15% more of the GPU idle than the best number would.

    Args:
        keys: of the longest sequence. processors: multiprocessors of the GPU.
    """
    units = max(1, -(-keys // SPLIT_UNIT))
    slots = processors * blocks_a_processor
    efficiency = {}
    for splits in range(1, min(MAX_SPLITS, units) + 1):
        active = -(-units // -(-units // splits))
        waves = batch * kv_heads * active / slots
        efficiency[splits] = waves / math.ceil(waves) if waves > 0 else 1.0
    best = max(efficiency.values())
    return next(splits for splits, value in efficiency.items() if value >= 0.85 * best)


def _cuda_refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    if device.kind != "cuda":
        return "it runs on a GPU"
    if device.capability < (8, 0):
        return f"it needs compute capability 8.0, this GPU has {'.'.join(map(str, device.capability))}"
    if importlib.util.find_spec("mify._cuda") is None:
        return "mify._cuda is not built (no CUDA compiler was found when mify was installed)"
    if dtype != torch.bfloat16:
        return f"it is for bfloat16 queries, not {dtype}"
    if shape["cache_bytes"] not in (1, 2):
        return "it is for a bfloat16 or float8_e4m3fn cache"
    if shape["head_dim"] not in (64, 128):
        return f"it is for head dimensions 64 and 128, not {shape['head_dim']}"
    if shape["group"] > 16:
        return f"it takes at most 16 query heads a key/value head, not {shape['group']}"
    if shape["page_size"] and (shape["page_size"] < 16 or shape["page_size"] & (shape["page_size"] - 1)):
        return f"its pages hold a power of two of at least 16 keys, not {shape['page_size']}"
    return ""


def triton_refuses(device: dispatch.Device, dtype: torch.dtype, shape: dispatch.Shape) -> str:
    """Why the Triton kernels cannot take these tensors, or ""."""
    if dtype == torch.float64:
        return "it has no float64"
    if device.kind == "cuda" and shape["cache_bytes"] == 1 and device.capability < (8, 9):
        return "Triton has no float8_e4m3fn below compute capability 8.9"
    if shape["head_dim"] < 16 or shape["head_dim"] > 256 or shape["head_dim"] & (shape["head_dim"] - 1):
        return f"it is for head dimensions 16, 32, 64, 128 and 256, not {shape['head_dim']}"
    return ""


dispatch.register(
    "gqa_decode",
    dispatch.Backend("cuda", _cuda_refuses),
    dispatch.Backend("triton", triton_refuses),
    dispatch.Backend("cpu", gqa_paged_cpu.refuses),
    dispatch.Backend("ref", lambda *_: ""),
)


def _forward(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    page_table: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
    num_splits: int,
    impl: str,
) -> Tensor:
    shape = _shape(q, k_cache, page_table)
    backend = dispatch.resolve("gqa_decode", impl, q, shape)
    if not q.numel() or not _capacity(k_cache, page_table):
        backend = "ref"  # there is nothing to launch a kernel for
    arguments = (q, k_cache, v_cache, lengths, page_table, k_scale, v_scale, scale)
    if backend == "cuda":
        from . import gqa_decode_cuda

        return gqa_decode_cuda.forward(*arguments, num_splits)
    if backend == "triton":
        from . import gqa_decode_triton

        with launch.on(q):
            return gqa_decode_triton.forward(*arguments, num_splits)
    if backend == "cpu":
        return gqa_paged_cpu.forward(q, k_cache, v_cache, None, lengths, page_table, k_scale, v_scale, scale)
    if q.device.type == "cpu":
        check_values(k_cache, lengths, page_table)
    return gqa_decode_ref.forward(*arguments)


_op = torch.library.custom_op("mify::gqa_decode", mutates_args=())(_forward)


@_op.register_fake
def _(q, k_cache, v_cache, lengths, page_table, k_scale, v_scale, scale, num_splits, impl):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape)


def _capacity(k_cache: Tensor, page_table: Tensor | None) -> int:
    """Keys that a sequence can have."""
    return k_cache.shape[1] * (1 if page_table is None else page_table.shape[1])


def _shape(q: Tensor, k_cache: Tensor, page_table: Tensor | None) -> dict[str, int]:
    return {
        "batch": q.shape[0],
        "group": q.shape[1] // k_cache.shape[2],
        "kv_heads": k_cache.shape[2],
        "head_dim": q.shape[2],
        "page_size": k_cache.shape[1] if page_table is not None else 0,
        "cache_bytes": k_cache.element_size(),
    }


def gqa_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    page_table: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    scale: float | None = None,
    num_splits: int = 0,
    impl: str = "auto",
) -> Tensor:
    """Attention of one token a sequence over its cache; not differentiable.

    Args:
        q: (B, Hq, D) floating.
        k_cache, v_cache: (B, S, Hkv, D), or (pages, page_size, Hkv, D) with `page_table`; dtype of q or float8_e4m3fn,
            Hq a multiple of Hkv, any strides with D contiguous.
        lengths: (B,) int32, keys of each sequence (the new token's included), 0 to what its cache holds. Zero gives
            zeros.
        page_table: (B, columns) int32 page ids; entries beyond a sequence's last page are not used.
        k_scale, v_scale: (Hkv,) fp32, for an FP8 cache; None is 1.
        scale: of the scores; None is 1/√D.
        num_splits: parts a sequence's keys are split into, at most 128; 0 chooses.
        impl: see `mify.kernels.dispatch`.

    Returns:
        (B, Hq, D), contiguous, dtype of q.

    Raises:
        TypeError, ValueError: an argument that cannot be meant, named. On a GPU the values of `lengths` and
            `page_table` are not read back for a check, since that would wait for the GPU: the row of a sequence for
            which they are out of range is NaN.
    """
    checks.tensor("q", q, dims=3)
    checks.floating("q", q)
    if q.shape[2] == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}; the head dimension must be positive")
    check_cache(q, k_cache, v_cache)
    _check_lengths(q, k_cache, lengths, page_table)
    check_scales(q, k_cache, k_scale, v_scale)
    checks.whole_number("num_splits", num_splits)
    if not 0 <= num_splits <= MAX_SPLITS:
        raise ValueError(f"num_splits is {num_splits}; it must be 0 (chosen) to {MAX_SPLITS}")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it must be positive, or None for 1/√D")
    scale = 1 / math.sqrt(q.shape[2]) if scale is None else float(scale)
    run = _forward if dispatch.direct() else _op
    out: Tensor = run(q, k_cache, v_cache, lengths, page_table, k_scale, v_scale, scale, num_splits, impl)
    return out


def check_scales(q: Tensor, k_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None) -> None:
    """Raises unless the scales are None or one fp32 number a key/value head."""
    for name, x in (("k_scale", k_scale), ("v_scale", v_scale)):
        if x is None:
            continue
        checks.tensor(name, x, dims=1)
        checks.same(name, x, "q", q, dtype=False)
        if x.dtype != torch.float32 or x.shape[0] != k_cache.shape[2]:
            raise ValueError(f"{name} is {x.dtype} of shape {tuple(x.shape)}; it must be float32 ({k_cache.shape[2]},)")


def check_cache(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """Raises unless the caches are four-dimensional, alike, and go with q."""
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        checks.tensor(name, x, dims=4)
        checks.same(name, x, "q", q, dtype=False)
        if x.dtype not in (q.dtype, FP8):
            raise TypeError(f"{name} has dtype {x.dtype}; it must be that of q, {q.dtype}, or {FP8}")
        if x.shape[3] != q.shape[2]:
            raise ValueError(f"{name} has head dimension {x.shape[3]} but q has {q.shape[2]}")
        if x.shape[3] > 1 and x.stride(3) != 1:
            raise ValueError(f"{name} has strides {x.stride()}; the last dimension must be contiguous")
    if k_cache.shape != v_cache.shape or k_cache.dtype != v_cache.dtype:
        raise ValueError(
            f"k_cache is {k_cache.dtype} {tuple(k_cache.shape)} but v_cache {v_cache.dtype} {tuple(v_cache.shape)}; "
            "they must be equal"
        )
    heads = k_cache.shape[2]
    if heads == 0 or q.shape[1] == 0 or q.shape[1] % heads:
        raise ValueError(f"q has {q.shape[1]} heads and k_cache {heads}; the first must be a multiple of the second")


def _check_lengths(q: Tensor, k_cache: Tensor, lengths: Tensor, page_table: Tensor | None) -> None:
    batch = q.shape[0]
    checks.tensor("lengths", lengths, dims=1)
    checks.integer("lengths", lengths, torch.int32)
    checks.same("lengths", lengths, "q", q, dtype=False)
    if lengths.shape[0] != batch:
        raise ValueError(f"lengths has {lengths.shape[0]} entries; q has {batch} sequences")
    if page_table is None:
        if k_cache.shape[0] != batch:
            raise ValueError(
                f"k_cache holds {k_cache.shape[0]} sequences but q {batch}; a paged cache needs page_table"
            )
    else:
        checks.tensor("page_table", page_table, dims=2)
        checks.integer("page_table", page_table, torch.int32)
        checks.same("page_table", page_table, "q", q, dtype=False)
        if page_table.shape[0] != batch:
            raise ValueError(f"page_table has {page_table.shape[0]} rows; q has {batch} sequences")
        if batch and not (k_cache.shape[0] and k_cache.shape[1]):
            raise ValueError(f"k_cache has shape {tuple(k_cache.shape)}; a pool holds at least one page of one key")


def check_values(k_cache: Tensor, lengths: Tensor, page_table: Tensor | None) -> None:
    """What the C++ kernel checks itself, for the others on a CPU: raises for a length or a page that cannot be."""
    capacity = _capacity(k_cache, page_table)
    for index, length in enumerate(lengths.tolist()):
        if not 0 <= length <= capacity:
            raise ValueError(f"lengths[{index}] is {length}; it must be 0 to {capacity}")
    if page_table is not None and page_table.shape[1] > 0:
        used = torch.arange(page_table.shape[1])[None, :] * k_cache.shape[1] < lengths[:, None]
        pages = page_table[used]
        if pages.numel() and (int(pages.min()) < 0 or int(pages.max()) >= k_cache.shape[0]):
            least, most = int(pages.min()), int(pages.max())
            raise ValueError(f"page_table names pages {least} to {most}; there are 0 to {k_cache.shape[0] - 1}")
