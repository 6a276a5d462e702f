"""How linear weights are stored quantized, in the layouts of `compressed-tensors`: scales, rounding, packing.

For a weight W (out, in), with scales in `scale_dtype`:

    fp8          E4M3, a scale = amax/448 a row; activations E4M3 per token at run time
    fp8-weight   the same weights; activations as they are
    fp8-block    E4M3, a scale for each 128×128 block; activations E4M3 by 1×128 at run time
    int8         levels -128 to 127, a scale = amax/127 a row; activations int8 per token at run time
    int8-weight  the same weights, packed four to a word; activations as they are
    int8-group   levels -128 to 127, a scale for each `group_size` columns of a row, packed; activations as they are
    int4         levels -8 to 7, a scale for each `group_size` columns of a row, packed eight to a word

Packed words are int32, the first value in the lowest bits, each shifted to start at 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mify.errors import MifyError
from mify.export.safetensors_file import Entry
from mify.quantization.feedback import feedback_factor, round_with_feedback

FP8_MAX = 448.0
BLOCK = 128
LAYOUT_VERSION = "0.20.0"
"""The version of compressed-tensors whose layout this is."""
_SHRINKS = tuple(1.0 - 0.05 * step for step in range(8))


@dataclass(frozen=True, slots=True)
class _Layout:
    """One kind: compressed-tensors' names for it, and how activations are rounded at run time ("" where not)."""

    format: str
    bits: int
    strategy: str
    activations: str

    @property
    def is_float(self) -> bool:
        return self.format in ("float-quantized", "naive-quantized")

    @property
    def packed(self) -> bool:
        return self.format == "pack-quantized"


LAYOUTS = {
    "fp8": _Layout("float-quantized", 8, "channel", "token"),
    "fp8-weight": _Layout("naive-quantized", 8, "channel", ""),
    "fp8-block": _Layout("float-quantized", 8, "block", "group"),
    "int8": _Layout("int-quantized", 8, "channel", "token"),
    "int8-weight": _Layout("pack-quantized", 8, "channel", ""),
    "int8-group": _Layout("pack-quantized", 8, "group", ""),
    "int4": _Layout("pack-quantized", 4, "group", ""),
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How linear weights are stored.

    Args:
        kind: one of `LAYOUTS`.
        group_size: columns that share a scale (int4, int8-group).
        scale_dtype: of `weight_scale`.
    """

    kind: str
    group_size: int = 0
    scale_dtype: torch.dtype = torch.bfloat16

    @property
    def layout(self) -> _Layout:
        return LAYOUTS[self.kind]

    def entries(self, shape: tuple[int, ...]) -> dict[str, Entry]:
        """What stands for a weight of `shape`: suffix of the name → dtype and shape."""
        out, columns = shape
        layout = self.layout
        scales = {
            "channel": (out, 1),
            "block": (-(-out // BLOCK), -(-columns // BLOCK)),
            "group": (out, columns // max(1, self.group_size)),
        }
        scale = Entry(self.scale_dtype, scales[layout.strategy])
        if layout.packed:
            return {
                "weight_packed": Entry(torch.int32, (out, columns * layout.bits // 32)),
                "weight_scale": scale,
                "weight_shape": Entry(torch.int64, (2,)),
            }
        stored = torch.float8_e4m3fn if layout.is_float else torch.int8
        return {"weight": Entry(stored, (out, columns)), "weight_scale": scale}

    def encode(self, weight: Tensor, name: str = "a weight", gram: Tensor | None = None) -> dict[str, Tensor]:
        """The tensors of `entries` for a weight (out, in). Raises `MifyError` with `name` where it is not finite.

        Rows, or blocks of them, have scales of their own: some are encoded at a time, so that what lies between the
        passes over them stays in the cache (325 → 95 ms for 6912 x 2560 on a core). FP8 by rows has one pass in C++
        with the same bits (230 → 15 ms).

        Args:
            gram: (in, in) xᵀx of calibration inputs: rounds with error feedback (`mify.quantization.feedback`).
        """
        if self._in_one_pass(weight) and gram is None:
            return self._fp8_rows(weight, name)
        stored = {suffix: torch.empty(entry.shape, dtype=entry.dtype) for suffix, entry in self.entries(
            (weight.shape[0], weight.shape[1])).items()}  # fmt: skip
        feedback = feedback_factor(gram) if gram is not None else None
        rows = BLOCK if feedback is None else weight.shape[0]  # feedback goes column by column, over all rows at once
        for start in range(0, weight.shape[0], rows):
            parts = self._encode_rows(weight[start : start + rows], name, feedback)
            first = start // BLOCK if self.layout.strategy == "block" else start
            for suffix, part in parts.items():
                place = first if suffix == "weight_scale" else start
                stored[suffix][place : place + part.shape[0]] = part
        if "weight_shape" in stored:
            stored["weight_shape"] = torch.tensor(weight.shape, dtype=torch.int64)
        return stored

    def _encode_rows(self, weight: Tensor, name: str, feedback: Tensor | None) -> dict[str, Tensor]:
        """`encode` of some rows, without their shape."""
        values = weight.float()
        if not bool(values.abs().amax().isfinite()):  # NaN and infinity reach the maximum
            raise _not_finite(weight, name)
        scale = self._scale(values)
        # The rounded scale is the one engines multiply by, so it is the one to divide by.
        spread = self._spread(scale.float(), values.shape)
        if feedback is None:
            codes = self._nearest(values / spread)
        else:
            codes = round_with_feedback(values, spread, feedback, self._nearest)
        if self.layout.is_float:
            return {"weight": codes.to(torch.float8_e4m3fn), "weight_scale": scale}
        levels = codes.to(torch.int8)
        if not self.layout.packed:
            return {"weight": levels, "weight_scale": scale}
        return {"weight_packed": pack(levels, self.layout.bits), "weight_scale": scale}

    def _in_one_pass(self, weight: Tensor) -> bool:
        """Whether `_fp8_rows` encodes this weight."""
        kind = self.kind in ("fp8", "fp8-weight") and self.scale_dtype == torch.bfloat16
        return kind and weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32)

    def _fp8_rows(self, weight: Tensor, name: str) -> dict[str, Tensor]:
        """`_encode_rows` of the kind fp8, by csrc/quantize/fp8_rows.hpp."""
        from mify._core import quantization

        weight = weight.contiguous()
        rows, columns = weight.shape
        codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        scale = torch.empty((rows, 1), dtype=torch.bfloat16)
        finite = quantization.fp8_rows(
            weight.data_ptr(), weight.dtype == torch.bfloat16, rows, columns, codes.data_ptr(),
            scale.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        if not finite:
            raise _not_finite(weight, name)
        return {"weight": codes, "weight_scale": scale}

    def _nearest(self, scaled: Tensor) -> Tensor:
        """The nearest value that can be stored, fp32."""
        if self.layout.is_float:
            return scaled.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float()
        half = 1 << (self.layout.bits - 1)
        return scaled.round().clamp(-half, half - 1)

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        """The fp32 weight (out, in) that engines compute with."""
        layout = self.layout
        values = unpack(stored["weight_packed"], layout.bits) if layout.packed else stored["weight"]
        return values.float() * self._spread(stored["weight_scale"].float(), values.shape)

    def round(self, weight: Tensor) -> Tensor:
        """A weight (out, in) rounded and back, with scales of the largest value alone and in fp32: for searching."""
        groups = weight.view(weight.shape[0], -1, self.group_size or weight.shape[1])
        half = 1 << (self.layout.bits - 1)
        scale = (groups.abs().amax(-1, keepdim=True) / (half - 0.5)).clamp(min=1e-12)
        return ((groups / scale).round().clamp(-half, half - 1) * scale).view(weight.shape)

    def round_activations(self, x: Tensor) -> Tensor:
        """x (tokens, in) as engines round it before the product; x itself where they do not."""
        if not self.layout.activations:
            return x
        if self.layout.activations == "group":
            padded = F.pad(x, (0, -x.shape[-1] % BLOCK))
            groups = padded.view(*padded.shape[:-1], -1, BLOCK)
            return _round_rows(groups, True).flatten(-2)[..., : x.shape[-1]]
        return _round_rows(x, self.layout.is_float)

    def quantization_config(self) -> dict[str, Any]:
        """The `quantization_config` entry of config.json."""
        layout = self.layout
        common: dict[str, Any] = {
            "group_size": None,
            "num_bits": layout.bits,
            "symmetric": True,
            "type": "float" if layout.is_float else "int",
        }
        weights = {**common, "dynamic": False, "observer": "memoryless_minmax", "strategy": layout.strategy}
        if layout.strategy == "group":
            weights |= {"group_size": self.group_size, "observer": "memoryless_mse"}
        if layout.strategy == "block":
            weights |= {"block_structure": [BLOCK, BLOCK]}
        activations: dict[str, Any] | None = None
        if layout.activations:
            activations = {**common, "dynamic": True, "strategy": layout.activations}
        if layout.activations == "group":
            activations = {**common, "dynamic": True, "strategy": "group", "group_size": BLOCK}
        group = {
            "format": layout.format,
            "input_activations": activations,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": weights,
        }
        return {
            "config_groups": {"group_0": group},
            "format": layout.format,
            "global_compression_ratio": None,
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
            "moe_sparsity_config": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": LAYOUT_VERSION,
        }

    @staticmethod
    def of_config(settings: Mapping[str, Any], where: str) -> Scheme:
        """The scheme that a `quantization_config` describes. Raises `MifyError` for one that is none of these."""
        groups: dict[str, Any] = settings.get("config_groups") or {}
        weights: dict[str, Any] = {}
        if len(groups) == 1:
            weights = next(iter(groups.values())).get("weights") or {}
        found = (settings.get("format"), weights.get("num_bits"), weights.get("strategy"))
        kinds = [kind for kind, it in LAYOUTS.items() if (it.format, it.bits, it.strategy) == found]
        known = settings.get("quant_method") == "compressed-tensors" and weights.get("symmetric") is True and kinds
        if not known or (kinds == ["fp8-block"] and weights.get("block_structure") != [BLOCK, BLOCK]):
            raise MifyError(
                f"{where}: quantization_config {settings.get('quant_method')!r}, format {settings.get('format')!r}, "
                f"weights {(*found[1:], weights.get('symmetric'))} is not one that can be decoded here",
                "import the unquantized model, or the GGUF file of this one",
            )
        grouped = LAYOUTS[kinds[0]].strategy == "group"
        return Scheme(kinds[0], int(weights.get("group_size") or 0) if grouped else 0)

    def _scale(self, values: Tensor) -> Tensor:
        layout = self.layout
        if layout.strategy == "group":
            return _group_scale(values, self.group_size, layout.bits, self.scale_dtype)
        limit = FP8_MAX if layout.is_float else 127.0
        if layout.strategy == "block":
            out, columns = values.shape
            padded = F.pad(values.abs(), (0, -columns % BLOCK, 0, -out % BLOCK))
            amax = padded.view(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK).amax((1, 3))
        else:
            amax = values.abs().amax(dim=1, keepdim=True)
        scale = (amax / limit).to(self.scale_dtype)
        return torch.where(scale > 0, scale, 1.0)  # 0 too where amax is so small that its scale is none of the dtype

    def _spread(self, scale: Tensor, shape: torch.Size) -> Tensor:
        """The scale of every value, as what broadcasts over `shape`."""
        if self.layout.strategy == "channel":
            return scale
        if self.layout.strategy == "group":
            return scale.repeat_interleave(self.group_size, 1)
        rows = scale.repeat_interleave(BLOCK, 0)[: shape[0]]
        return rows.repeat_interleave(BLOCK, 1)[:, : shape[1]]


def _not_finite(weight: Tensor, name: str) -> MifyError:
    bad = int((~weight.isfinite()).sum())
    return MifyError(f"{name} holds {bad} values that are NaN or infinite", "quantize an earlier checkpoint of the run")


def _round_rows(x: Tensor, is_float: bool) -> Tensor:
    amax = x.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    if is_float:
        scale = amax / FP8_MAX
        return (x / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).to(x.dtype) * scale
    scale = amax / 127.5  # as compressed-tensors has it for activations
    return (x / scale).round().clamp(-128, 127) * scale


def pack(levels: Tensor, bits: int) -> Tensor:
    """(out, in) levels from -2^(bits-1) → (out, in · bits / 32) int32."""
    values = (levels.to(torch.int64) + (1 << (bits - 1))).view(levels.shape[0], -1, 32 // bits)
    words = (values << torch.arange(0, 32, bits, device=levels.device)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """(out, in · bits / 32) int32 → (out, in) int8 levels from -2^(bits-1)."""
    values = (packed.to(torch.int64)[..., None] >> torch.arange(0, 32, bits, device=packed.device)) & ((1 << bits) - 1)
    return (values - (1 << (bits - 1))).to(torch.int8).view(packed.shape[0], -1)


def _group_scale(values: Tensor, group_size: int, bits: int, dtype: torch.dtype) -> Tensor:
    """(out, in/group): the scale of the largest value; with 4 bits, of that shrunk by up to 35%, the one with the least
    squared error in each group.
    """
    half = 1 << (bits - 1)
    groups = values.view(values.shape[0], -1, group_size)
    amax = groups.abs().amax(-1)
    full = torch.where(amax > 0, amax / (half - 0.5), 1.0)
    best = full.to(dtype)
    if bits > 4:
        return best
    least = torch.full_like(full, float("inf"))
    for shrink in _SHRINKS:
        scale = (full * shrink).to(dtype)
        wide = scale.float()[..., None]
        error = ((groups / wide).round().clamp(-half, half - 1) * wide - groups).square().sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, scale, best)
    return best
