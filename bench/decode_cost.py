"""What generation costs at least: the passes of a batch, from prefill to the last token, by FLOPs and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from mify.hardware import GpuSpec
from mify.kernels import cost
from mify.kernels.cost import Cost, ModelShape


@dataclass(frozen=True, slots=True)
class Load:
    """`batch` requests of `prompt` tokens each, continued by `new`, all at the same time."""

    batch: int
    prompt: int
    new: int

    @property
    def name(self) -> str:
        return f"{self.prompt}/{self.new}"


@dataclass(frozen=True, slots=True)
class Formats:
    """Bytes an element of the linear weights (scales included) and of keys and values; whether products are FP8's."""

    name: str
    weight: float
    kv: int
    fp8_products: bool


FORMATS = {
    "bf16": Formats("bf16", 2.0, cost.BF16, False),
    "fp8": Formats("fp8", 1.0, cost.FP8, True),
    "awq4": Formats("awq4", 0.5 + 2 / 128, cost.BF16, False),
}


def prefill(shape: ModelShape, load: Load, formats: Formats) -> Cost:
    """All prompts in one pass: every weight is read once, attention is over what is visible."""
    work = cost.Workload.documents([load.prompt] * load.batch, labelled=load.batch)
    counts = cost.parameters(shape)
    head = shape.vocab_size * shape.hidden_size * cost.BF16
    keys = cost.kv_cache_bytes(shape, load.batch * load.prompt, kv_element=formats.kv)
    weights = round((counts.attention + counts.ffn) * formats.weight)
    return Cost(cost.model_flops(shape, work).forward, weights + head, keys)


def step(shape: ModelShape, load: Load, keys: int, formats: Formats) -> Cost:
    """One token more of every request with `keys` keys each."""
    one = cost.decode_step(shape, load.batch, keys, weight_element=1, kv_element=formats.kv)
    counts = cost.parameters(shape)
    return one + Cost(0, round((counts.attention + counts.ffn) * (formats.weight - 1)), 0)


def seconds(shape: ModelShape, load: Load, formats: Formats, spec: GpuSpec) -> tuple[float, float]:
    """The least that (prefill, decoding) can take with the speeds that were reached on this kind of GPU."""
    flops = spec.reached_bf16
    if formats.fp8_products:
        flops *= spec.fp8_flops / spec.bf16_flops * 0.9  # FP8 products reach about 1,430 of the sheet's 1,979
    first = prefill(shape, load, formats).seconds(flops, spec.reached_bandwidth)
    # The cost of a step is linear in its keys, so the middle one stands for all.
    middle = step(shape, load, load.prompt + load.new // 2, formats)
    return first, load.new * middle.seconds(flops, spec.reached_bandwidth)


def rate(shape: ModelShape, load: Load, formats: Formats, spec: GpuSpec) -> float:
    """New tokens a second at most, prefill counted."""
    return load.batch * load.new / sum(seconds(shape, load, formats, spec))
