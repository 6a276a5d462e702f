"""AWQ: activation-aware scaling before INT4 rounding (Lin et al. 2023, arXiv 2306.00978).

Rounding hurts most in the channels with large inputs. So channel c of a linear layer's input is divided by s_c and the
weights' column c multiplied by it, which changes nothing in exact arithmetic and makes those columns finer in INT4.
The division costs nothing: it folds into the norm, or the linear layer, that makes the input.

    s = (mean |x|)^α, α from 0 to 0.95 the one with the least ‖x·(Q(W·s)/s − W)ᵀ‖² over the calibration tokens

α = 0 is plain rounding, so on the calibration text no group gets worse than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mify.export.calibration import LinearInput, linear_inputs
from mify.export.quantized import Scheme
from mify.export.weights import ModelWeights, Weights

if TYPE_CHECKING:
    from mify.model import Model

_ALPHAS = tuple(step / 20 for step in range(20))


class ScaledWeights(Weights):
    """Weights with rows and columns multiplied on the way out.

    Args:
        rows: name → (out,) factors (of a vector: of its values). columns: name → (in,) factors.
    """

    def __init__(self, source: Weights, rows: dict[str, Tensor], columns: dict[str, Tensor]) -> None:
        self.config, self.tokenizer = source.config, source.tokenizer
        self.conventions, self.source = source.conventions, source.source
        self._source, self._rows, self._columns = source, rows, columns

    def tensor(self, name: str) -> Tensor:
        tensor = self._source.tensor(name)
        if name in self._columns:
            tensor = tensor.float() * self._columns[name]
        if name in self._rows:
            factors = self._rows[name]
            tensor = tensor.float() * (factors if tensor.dim() == 1 else factors[:, None])
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self._rows or name in self._columns else self._source.dtype(name)


def scale_for_int4(
    model: Model, sequences: Sequence[Sequence[int]], scheme: Scheme, *, samples: int = 512
) -> ScaledWeights:
    """`model`'s weights, scaled for `scheme` by what calibration `sequences` send through it.

    The scaled weights compute the same function; only what rounding does to them differs.
    """
    inputs = linear_inputs(model, sequences, samples=samples)
    source = ModelWeights(model)
    config = model.config
    group = config.num_query_heads // config.num_kv_heads
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for layer in range(config.num_layers):
        base = f"model.layers.{layer}."

        def names(*kinds: str, base: str = base) -> list[str]:
            return [f"{base}{kind}.weight" for kind in kinds]

        qkv = names("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        gate_up = names("mlp.gate_proj", "mlp.up_proj")
        (output,), (down,) = names("self_attn.o_proj"), names("mlp.down_proj")
        (value,), (up,) = names("self_attn.v_proj"), names("mlp.up_proj")

        for norm, linears in (("input_layernorm", qkv), ("post_attention_layernorm", gate_up)):
            scale = _search(source, linears, inputs[linears[0]], scheme)
            rows[f"{base}{norm}.weight"] = 1 / scale
            columns |= dict.fromkeys(linears, scale)

        scale = _search(source, [down], inputs[down], scheme)
        rows[up], columns[down] = 1 / scale, scale

        # Query heads of one group read the same values, so their columns of the output projection share a scale.
        scale = _search(source, [output], inputs[output], scheme, shared=(config.num_kv_heads, group, config.head_dim))
        rows[value] = 1 / scale.view(config.num_kv_heads, group, -1)[:, 0].reshape(-1)
        columns[output] = scale
    return ScaledWeights(source, rows, columns)


def _search(
    source: Weights,
    names: list[str],
    seen: LinearInput,
    scheme: Scheme,
    shared: tuple[int, int, int] | None = None,
) -> Tensor:
    """(width,) the factors of the columns of `names` with the least output error.

    Args:
        shared: (key/value heads, query heads a group, head dimension) where the groups' channels share factors.
    """
    weights = [source.tensor(name).float() for name in names]
    mean = seen.mean
    if shared is not None:
        mean = mean.view(shared).mean(1, keepdim=True).expand(shared).reshape(-1)
    best, least = torch.ones_like(mean), float("inf")
    for alpha in _ALPHAS:
        scale = mean.pow(alpha).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = sum(
            float((seen.rows @ (scheme.round(weight * scale) / scale - weight).T).square().sum()) for weight in weights
        )
        if error < least:
            best, least = scale, error
    return best
