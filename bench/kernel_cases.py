"""The cases of `mify bench kernels`: which op at which shape, for a GPU and for a CPU. Imports no torch by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mify.kernels import cost, row_cost
from mify.kernels.cost import Cost
from mify.kernels.packing import fim_pack_cost

if TYPE_CHECKING:
    from mify.bench.kernel_ops import Parts


@dataclass(frozen=True, slots=True)
class OpCase:
    """An op at a shape. `make()` prepares it on `device`; `costs` predict its parts where it cannot run."""

    what: str
    device: str
    make: Callable[[], Parts]
    costs: dict[str, Cost]


def document_lengths(total: int, mean: int, seed: int) -> list[int]:
    """Lengths that sum to `total`, exponentially distributed about `mean` as code files roughly are."""
    source = random.Random(seed)
    lengths: list[int] = []
    while (left := total - sum(lengths)) > 0:
        lengths.append(min(left, max(16, int(source.expovariate(1 / mean)))))
    return lengths


def gpu_cases() -> dict[str, OpCase]:
    def gqa(tokens: int, mean: int, heads: int, kv_heads: int, equal: bool = False) -> OpCase:
        lengths = [mean] * (tokens // mean) if equal else document_lengths(tokens, mean, seed=0)

        def make() -> Parts:
            import torch

            from mify.bench import kernel_ops

            return kernel_ops.gqa("cuda", torch.bfloat16, lengths, heads, kv_heads, 128, own_triton=equal)

        pairs = cost.visible_pairs(lengths)
        sizes = (pairs, tokens, heads, kv_heads, 128)
        costs = {"forward": cost.gqa_forward(*sizes), "backward": cost.gqa_backward(*sizes, recomputed=True)}
        kind = f"{mean:,} tokens each" if equal else f"{mean:,} tokens on average"
        what = f"{tokens // 1024}k tokens of documents of {kind}, {heads}/{kv_heads}/128, causal"
        return OpCase(what, "cuda", make, costs)

    def decode(batch: int, keys: int, fp8: bool) -> OpCase:
        copies = max(1, min(64, (1 << 29) // (batch * keys * 8 * 128 * (2 if fp8 else 4))))

        def make() -> Parts:
            import torch

            from mify.bench import kernel_ops

            return kernel_ops.decode("cuda", torch.bfloat16, batch, keys, 32, 8, 128, fp8, copies)

        one = cost.gqa_decode([keys] * batch, 32, 8, 128, kv_element=1 if fp8 else 2, page_size=64)
        kind = "FP8" if fp8 else "bf16"
        return OpCase(
            f"one token, {batch} x {keys:,} cached keys, 32/8/128, {kind}, paged", "cuda", make, {"decode": one}
        )

    def rows(what: str, function: str, arguments: tuple[int | bool, ...], costs: dict[str, Cost]) -> OpCase:
        def make() -> Parts:
            import torch

            from mify.bench import row_ops

            parts: Parts = getattr(row_ops, function)("cuda", torch.bfloat16, *arguments)
            return parts

        return OpCase(what, "cuda", make, costs)

    def norm_fp8(layouts: int, delayed: bool = False) -> OpCase:
        what = f"RMSNorm with a residual to FP8 {_layouts(layouts, delayed)}, 32k x 2560"
        one = row_cost.rms_norm_forward(*norm, residual=True, fp8_layouts=layouts, delayed=delayed)
        return rows(what, "norm_fp8", (*norm, layouts == 2, delayed), {"forward": one})

    def swiglu_fp8(layouts: int, delayed: bool = False) -> OpCase:
        what = f"SwiGLU to FP8 {_layouts(layouts, delayed)}, 32k x 6912"
        one = row_cost.swiglu_forward(*glu, fp8_layouts=layouts, delayed=delayed)
        return rows(what, "swiglu_to_fp8", (*glu, layouts == 2, delayed), {"forward": one})

    def pack() -> Parts:
        from mify.bench import pack_ops

        return pack_ops.fim_pack("cuda", 512, 8192)

    norm, glu, turn, loss = (32768, 2560), (32768, 6912), (32768, 20, 4, 128), (8192, 2560, 65_536)
    packed = (512 * 8192, 512 * 8)
    return {
        "gqa-packed-512-20-4": gqa(32768, 512, 20, 4),
        "gqa-packed-2k-20-4": gqa(65536, 2048, 20, 4),
        "gqa-packed-512-32-8": gqa(32768, 512, 32, 8),
        "gqa-packed-1k-32-8": gqa(32768, 1024, 32, 8),
        "gqa-packed-2k-32-8": gqa(65536, 2048, 32, 8),
        "gqa-long-8k-20-4": gqa(32768, 8192, 20, 4, equal=True),
        "gqa-long-16k-32-8": gqa(32768, 16384, 32, 8, equal=True),
        "decode-b1-1k": decode(1, 1024, False),
        "decode-b1-32k": decode(1, 32768, False),
        "decode-b64-4k": decode(64, 4096, False),
        "decode-b256-2k": decode(256, 2048, False),
        "decode-b64-4k-fp8": decode(64, 4096, True),
        "norm": rows("RMSNorm, 32k x 2560", "norm", norm, {
            "forward": row_cost.rms_norm_forward(*norm), "backward": row_cost.rms_norm_backward(*norm)}),
        "norm-residual": rows("RMSNorm of a sum, and the sum, 32k x 2560", "add_norm", norm, {
            "forward": row_cost.rms_norm_forward(*norm, residual=True),
            "backward": row_cost.rms_norm_backward(*norm, residual=True)}),
        "rope": rows("rotary positions of q and k, 32k x 20/4/128", "rope", turn, {
            "forward": row_cost.rope(*turn), "backward": row_cost.rope(*turn)}),
        "swiglu": rows("SwiGLU, 32k x 6912", "swiglu", glu, {
            "forward": row_cost.swiglu_forward(*glu), "backward": row_cost.swiglu_backward(*glu)}),
        "norm-fp8-one": norm_fp8(1),
        "norm-fp8-both": norm_fp8(2),
        "norm-fp8-both-delayed": norm_fp8(2, delayed=True),
        "swiglu-fp8-one": swiglu_fp8(1),
        "swiglu-fp8-both": swiglu_fp8(2),
        "swiglu-fp8-both-delayed": swiglu_fp8(2, delayed=True),
        "linear-ce": rows("output matrix and loss, 8192 x 2560 x 65,536", "linear_ce", loss, {
            "forward and backward": row_cost.linear_cross_entropy(*loss, weight_grad=cost.BF16)}),
        "fim-pack": OpCase("512 rows of 8192 from uint16 to a batch, widened, or gathered by spans", "cuda", pack, {
            "rows": fim_pack_cost.unpack_rows(*packed), "spans": fim_pack_cost.pack_spans(*packed, 512 * 20)}),
    }  # fmt: skip


def _layouts(layouts: int, delayed: bool) -> str:
    return f"in {('one layout', 'both layouts')[layouts - 1]}, {'a delayed scale' if delayed else 'blocks'}"


def cpu_cases() -> dict[str, OpCase]:
    def case(what: str, function: str, *arguments: Any) -> OpCase:
        def make() -> Parts:
            import torch

            from mify.bench import kernel_ops, row_ops

            module = kernel_ops if function == "gqa" else row_ops
            parts: Parts = getattr(module, function)("cpu", torch.float32, *arguments)
            return parts

        return OpCase(what, "cpu", make, {})

    def pack() -> Parts:
        from mify.bench import pack_ops

        return pack_ops.fim_pack("cpu", 32, 8192)

    return {
        "cpu-gqa-packed": case(
            "4k tokens of documents of 256 on average, 4/2/64, fp32, CPU",
            "gqa",
            document_lengths(4096, 256, seed=0),
            4,
            2,
            64,
        ),
        "cpu-norm": case("RMSNorm, 4k x 768, fp32, CPU", "norm", 4096, 768),
        "cpu-rope": case("rotary positions, 4k x 6/2/128, fp32, CPU", "rope", 4096, 6, 2, 128),
        "cpu-swiglu": case("SwiGLU, 4k x 2048, fp32, CPU", "swiglu", 4096, 2048),
        "cpu-linear-ce": case("output matrix and loss, 4096 x 192 x 4096, fp32, CPU", "linear_ce", 4096, 192, 4096),
        "cpu-fim-pack": OpCase("32 rows of 8192 from uint16 to a batch, widened, or gathered, CPU", "cpu", pack, {}),
    }
