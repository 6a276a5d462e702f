"""AWQ: activation-aware scaling before rounding to INT8 or INT4 (Lin et al. 2023, arXiv 2306.00978).

Rounding hurts most in the channels with large inputs. So channel c of a linear layer's input is divided by s_c and the
weights' column c multiplied by it, which changes nothing in exact arithmetic and makes those columns finer. The
division costs nothing: it folds into the norm, or the linear layer, that makes the input.

    s = (mean |x|)^α, α from 0 to 0.95 the one with the least ‖x·(Q(W·s)/s − W)ᵀ‖² over the calibration tokens

α = 0 is plain rounding, so on the calibration text no group gets worse than that.

All of this happens within a layer, so layers are read, searched and handed out one by one, in order: a conversion
holds one layer and the calibration tokens' hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mify.export.calibration import LinearInput
from mify.export.weights import Weights
from mify.quantization.layers import LayerPass, layer_of
from mify.quantization.scheme import Scheme

_ALPHAS = tuple(step / 20 for step in range(20))


class AwqWeights(Weights):
    """`source`'s weights, scaled for `scheme` by what calibration `sequences` send through them.

    They compute the same function; only what rounding does to them differs. Tensors are best asked for in the order of
    the layers; an earlier layer's is read from `source` again.

    Args:
        sequences, samples: see `LayerPass`.
    """

    def __init__(
        self, source: Weights, sequences: Sequence[Sequence[int]], scheme: Scheme, *, samples: int = 512
    ) -> None:
        self.config, self.tokenizer = source.config, source.tokenizer
        self.conventions, self.source = source.conventions, source.source
        self.layers = LayerPass(source, sequences, samples=samples)
        self._source, self._scheme = source, scheme
        self._rows: dict[str, Tensor] = {}
        self.columns: dict[str, Tensor] = {}
        """Weight name → (in,) what its columns were multiplied by, of the layers that were searched so far."""

    def tensor(self, name: str) -> Tensor:
        layer = layer_of(name)
        if layer is None:
            return self._source.tensor(name)
        while self.layers.next_layer <= layer:
            self._search_layer(self.layers.advance())
        held = self.layers.tensors.get(name)
        tensor = held if held is not None else self._source.tensor(name).float()
        if name in self.columns:
            tensor = tensor * self.columns[name]
        if name in self._rows:
            factors = self._rows[name]
            tensor = tensor * (factors if tensor.dim() == 1 else factors[:, None])
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if layer_of(name) is not None else self._source.dtype(name)

    def _search_layer(self, layer: int) -> None:
        base, inputs, config = f"model.layers.{layer}.", self.layers.inputs, self.config

        def names(*kinds: str) -> list[str]:
            return [f"{base}{kind}.weight" for kind in kinds]

        qkv = names("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        gate_up = names("mlp.gate_proj", "mlp.up_proj")
        (output,), (down,) = names("self_attn.o_proj"), names("mlp.down_proj")
        (value,), (up,) = names("self_attn.v_proj"), names("mlp.up_proj")

        for norm, linears in (("input_layernorm", qkv), ("post_attention_layernorm", gate_up)):
            scale = self._search(linears, inputs[linears[0]])
            self._rows[f"{base}{norm}.weight"] = 1 / scale
            self.columns |= dict.fromkeys(linears, scale)

        scale = self._search([down], inputs[down])
        self._rows[up], self.columns[down] = 1 / scale, scale

        # Query heads of one group read the same values, so their columns of the output projection share a scale.
        group = config.num_query_heads // config.num_kv_heads
        scale = self._search([output], inputs[output], shared=(config.num_kv_heads, group, config.head_dim))
        self._rows[value] = 1 / scale.view(config.num_kv_heads, group, -1)[:, 0].reshape(-1)
        self.columns[output] = scale

    def _search(self, names: list[str], seen: LinearInput, shared: tuple[int, int, int] | None = None) -> Tensor:
        """(width,) the factors of the columns of `names` with the least output error.

        Args:
            shared: (key/value heads, query heads a group, head dimension) where the groups' channels share factors.
        """
        weights = [self.layers.tensors[name] for name in names]
        mean = seen.mean
        if shared is not None:
            mean = mean.view(shared).mean(1, keepdim=True).expand(shared).reshape(-1)
        best, least = torch.ones_like(mean), float("inf")
        for alpha in _ALPHAS:
            scale = mean.pow(alpha).clamp(min=1e-4)
            scale = scale / (scale.max() * scale.min()).sqrt()
            error = sum(
                float((seen.rows @ (self._scheme.round(weight * scale) / scale - weight).T).square().sum())
                for weight in weights
            )
            if error < least:
                best, least = scale, error
        return best
