"""The shape of a model: a frozen dataclass, the presets, and the parameter arithmetic that follows from them."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

from mify.errors import MifyError


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A Llama-shaped decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases.

    Every field is in the units its name says; `context` is the longest segment in tokens. Raises `MifyError` when a
    value is out of range or two values contradict each other.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    context: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise MifyError(f"{field.name} of model {self.name!r} is {value!r}", "give a positive whole number")
            if field.type == "float":
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                    raise MifyError(f"{field.name} of model {self.name!r} is {value!r}", "give a positive number")
                object.__setattr__(self, field.name, float(value))
            if field.type == "bool" and not isinstance(value, bool):
                raise MifyError(f"{field.name} of model {self.name!r} is {value!r}", "give true or false")
            if field.type == "str" and not isinstance(value, str):
                raise MifyError(f"{field.name} of a model is {value!r}", "give a string")
        if self.num_query_heads % self.num_kv_heads:
            raise MifyError(
                f"num_query_heads {self.num_query_heads} is not a multiple of num_kv_heads {self.num_kv_heads}",
                "let every key/value head serve the same number of query heads",
            )
        if self.head_dim % 2:
            raise MifyError(f"head_dim {self.head_dim} is odd", "rotary positions turn pairs: give an even number")

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as `from_dict` takes them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The configuration of a dictionary. An unknown or missing key raises `MifyError`."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise MifyError(
                    f"unknown key {key!r} in a model configuration",
                    f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}",
                )
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [key for key in required if key not in values]
        if missing:
            raise MifyError(f"a model configuration lacks {', '.join(missing)}", "add the missing keys")
        return cls(**values)

    def num_parameters(self) -> int:
        """All parameters; a tied embedding counts once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_non_embedding_parameters() + embeddings

    def num_non_embedding_parameters(self) -> int:
        """Parameters of the layers and the final norm: without the embedding and the output matrix."""
        d = self.hidden_size
        attention = 2 * d * self.num_query_heads * self.head_dim + 2 * d * self.num_kv_heads * self.head_dim
        return self.num_layers * (attention + 3 * d * self.ffn_size + 2 * d) + d


PRESETS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        # 2.538 B. Published of this class: 2.5B, GQA, BF16, a 64K BPE. The rest is this project's choice.
        ModelConfig("mify-2.5b", 32, 2560, 20, 4, 128, 6912, 65_536, 8192, 1e6),
        ModelConfig("mify-350m", 24, 1024, 8, 2, 128, 2816, 65_536, 4096, 1e5, tie_embeddings=True),
        ModelConfig("mify-125m", 12, 768, 6, 2, 128, 2048, 65_536, 4096, 1e5, tie_embeddings=True),
        ModelConfig("mify-tiny", 4, 192, 4, 2, 64, 512, 4096, 512, 1e4, tie_embeddings=True),
    )
}


def model_config(name: str, /, **overrides: Any) -> ModelConfig:
    """A preset by name, with fields replaced by `overrides`. An unknown name or field raises `MifyError`."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise MifyError(f"unknown model {name!r}", f"{hint}the presets are {', '.join(PRESETS)}")
    return ModelConfig.from_dict({**PRESETS[name].to_dict(), **overrides})


Fp8Backend = Literal["auto", "te", "torch", "emulation"]


@dataclass(frozen=True)
class Fp8Settings:
    """How a model computes in FP8.

    Args:
        recipe: block, current or delayed, see `mify.kernels.gemm.scaling`.
        backend: te: Transformer Engine. torch: torch's scaled matmul, fed by our fused kernels. emulation: the same
            numerics in plain torch, anywhere. auto: torch where it runs, else the emulation.
        first_layers, last_layers: so many layers at the model's beginning and end are left as they are.
        keep: patterns of names of linear layers that are left as they are, such as "*.o_proj" or "model.layers.3.*".
        amax_history: steps that delayed scaling looks back on. margin: binary orders of headroom it leaves.
        cache_weights: keep a step's quantized weights from its first micro-batch to its last (2 bytes a parameter).
    """

    recipe: Literal["block", "current", "delayed"] = "block"
    backend: Fp8Backend = "auto"
    first_layers: int = 1
    last_layers: int = 1
    keep: tuple[str, ...] = ()
    amax_history: int = 1024
    margin: int = 0
    cache_weights: bool = True

    def __post_init__(self) -> None:
        for name, least in (("first_layers", 0), ("last_layers", 0), ("amax_history", 1), ("margin", 0)):
            if getattr(self, name) < least:
                raise MifyError(f"fp8.{name} = {getattr(self, name)} is below {least}", f"give at least {least}")
