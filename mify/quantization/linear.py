"""Linear layers whose weights stay quantized in memory, for decoding.

    model = keep_quantized(open_weights("model-fp8"))      a folder that `mify quantize` wrote
    quantize_linears(model)                                 a model in memory, rounded to the nearest

On a GPU with FP8 tensor cores, FP8 by rows is one product: x is rounded by tokens, both operands are E4M3, sums are
scaled once (`torch.nn.functional.scaled_mm`, row-wise). Everything else is decoded where it is used, which saves memory
and no time; on a CPU that is slower than weights that were decoded once, as `mify.load` does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mify.errors import MifyError
from mify.export.quantized import is_linear
from mify.export.weights import Weights, remember_conventions, tensor_shapes
from mify.model import Model

from .scheme import FP8_MAX, Scheme

ALIGN = 16
"""What both widths are multiples of where FP8 tensor cores multiply: rows of 16 bytes."""


class QuantizedLinear(nn.Module):
    """x Wᵀ with W as `scheme` stores it, and x rounded as engines round it.

    Args:
        scheme: of the weight. parts: what `Scheme.encode` gives for it, suffix → tensor.
    """

    def __init__(self, scheme: Scheme, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.scheme = scheme
        for name, part in parts.items():
            self.register_buffer(name, part)

    def extra_repr(self) -> str:
        """For print(model)."""
        return self.scheme.kind

    def parts(self) -> dict[str, Tensor]:
        """What stands for the weight, suffix → tensor."""
        return dict(self.named_buffers())

    def forward(self, x: Tensor) -> Tensor:
        """x (T, K) → (T, N) in the dtype of x."""
        if x.is_cuda and self.scheme.kind == "fp8" and torch.cuda.get_device_capability(x.device) >= (8, 9):
            return self._fp8_product(x)
        weight = self.scheme.decode(self.parts())
        return F.linear(self.scheme.round_activations(x.float()), weight).to(x.dtype)

    def _fp8_product(self, x: Tensor) -> Tensor:
        weight, scale = self.get_buffer("weight"), self.get_buffer("weight_scale")
        largest = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
        rounded = (x / largest).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        rows = F.ScalingType.RowWise
        y: Tensor = F.scaled_mm(
            rounded, weight.t(), largest, rows, scale.float().t().contiguous(), rows, output_dtype=x.dtype
        )
        return y


def keep_quantized(
    weights: Weights, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Model:
    """The model of a quantized folder, its linear weights left as they are stored. Arguments as in `mify.load`.

    Raises:
        MifyError: weights that are not quantized.
    """
    weights.check_vocabulary()
    if weights.scheme is None:
        raise MifyError(f"{weights.source} holds no quantized weights", "load it as it is, or run mify quantize first")
    with torch.device("meta"):
        model = Model(weights.config)
    state: dict[str, Tensor] = {}
    for name in tensor_shapes(weights.config):
        if is_linear(name):
            parts = {suffix: part.to(device) for suffix, part in weights.stored(name).items()}
            _replace(model, name.removesuffix(".weight"), QuantizedLinear(weights.scheme, parts))
        else:
            state[name] = weights.tensor(name).to(device=device, dtype=dtype, copy=True)
    missing = model.load_state_dict(state, assign=True, strict=False).unexpected_keys
    assert not missing
    model.tokenizer = weights.tokenizer
    remember_conventions(model, weights.conventions)
    return model.eval()


@torch.no_grad()
def quantize_linears(model: Model, kind: str = "fp8") -> None:
    """Replaces the linear layers of a model, which stays on its device, by quantized ones, each value rounded to the
    nearest. Calibration text, as `mify quantize` takes it, costs less accuracy.

    Raises:
        MifyError: an unknown kind, widths that it does not take, weights that are NaN or infinite.
    """
    from mify.export.quantized import scheme_of

    scheme = scheme_of(kind, model.config)
    for name in tensor_shapes(model.config):
        if not is_linear(name):
            continue
        path = name.removesuffix(".weight")
        weight = model.get_submodule(path).get_parameter("weight")
        if kind == "fp8" and weight.is_cuda and (weight.shape[0] % ALIGN or weight.shape[1] % ALIGN):
            raise MifyError(
                f"{name} is {tuple(weight.shape)}; FP8 tensor cores take multiples of {ALIGN}",
                "choose other widths, or quantize to int8",
            )
        parts = {suffix: part.to(weight.device) for suffix, part in scheme.encode(weight, name).items()}
        _replace(model, path, QuantizedLinear(scheme, parts))


def _replace(model: Model, path: str, layer: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
