"""What `mify bench fp8` times on a GPU: the products of a linear layer, and layers with what quantizes for them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mify.bench.timing import random_like_activations
from mify.config import Fp8Settings, ModelConfig
from mify.kernels.gemm import fp8 as transformer_engine
from mify.kernels.gemm.gemm import fp8_matmul
from mify.kernels.gemm.gemm_cost import Linear
from mify.kernels.quantize.fp8 import Fp8
from mify.kernels.quantize.quantize import quantize_fp8

Call = Callable[[], Any]


def operands(m: int, n: int, k: int, *, blocks: bool, device: str) -> tuple[Fp8, Fp8]:
    """a (m, k) and b (n, k) of random normal values, quantized."""
    found = []
    for index, rows in enumerate((m, n)):
        x = random_like_activations(rows, k, dtype=torch.bfloat16, device=device, seed=index)
        scale = None if blocks else x.abs().amax().float() / 448
        found.append(quantize_fp8(x, scale=scale, transpose=False))
    return found[0], found[1]


def product_sizes(linear: Linear) -> dict[str, tuple[int, int, int]]:
    """(M, N, K) of the three products."""
    t, n, k = linear.tokens, linear.n, linear.k
    return {"forward": (t, n, k), "dgrad": (t, k, n), "wgrad": (n, k, -(-t // 128) * 128)}


def products(m: int, n: int, k: int) -> tuple[dict[str, Call], dict[str, str]]:
    """One product by every implementation that runs here, and why the others do not."""
    wide_a = random_like_activations(m, k, dtype=torch.bfloat16, device="cuda")
    wide_b = random_like_activations(n, k, dtype=torch.bfloat16, device="cuda", seed=1)
    calls: dict[str, Call] = {"bf16": lambda: wide_a @ wide_b.t()}
    absent: dict[str, str] = {}
    for name, blocks in (("mify block", True), ("mify per tensor", False)):
        a, b = operands(m, n, k, blocks=blocks, device="cuda")

        def call(a: Fp8 = a, b: Fp8 = b) -> Tensor:
            return fp8_matmul(a.data, a.scale, b.data, b.scale, impl="torch")

        try:
            call()
        except (ValueError, RuntimeError) as error:
            absent[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        calls[name] = call
    deep = deep_gemm(m, n, k)
    if isinstance(deep, str):
        absent["deep_gemm"] = deep
    else:
        calls["deep_gemm"] = deep
    return calls, absent


def deep_gemm(m: int, n: int, k: int) -> Call | str:
    """DeepGEMM's product with 1x128 and 128x128 scales, or why it cannot run."""
    if importlib.util.find_spec("deep_gemm") is None:
        return "the package deep_gemm is not installed"
    library = importlib.import_module("deep_gemm")
    a, _ = operands(m, n, k, blocks=True, device="cuda")
    b = random_like_activations(n, k, dtype=torch.bfloat16, device="cuda", seed=1)
    amax = b.float().view(n // 128, 128, k // 128, 128).abs().amax((1, 3)) if n % 128 == 0 else None
    if amax is None:
        return "its 128x128 scales want N to be a multiple of 128"
    scale = amax / 448
    data = (b.float() / scale.repeat_interleave(128, 0).repeat_interleave(128, 1)).to(torch.float8_e4m3fn)
    out = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")

    def call() -> Tensor:
        library.fp8_gemm_nt((a.data, a.scale), (data, scale), out)
        return out

    return call


def one_layer(config: ModelConfig, tokens: int) -> tuple[dict[str, Call], dict[str, str]]:
    """All linear layers of one decoder layer with its norms and SwiGLU, forward and backward, attention left out."""
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    settings: Mapping[str, Fp8Settings | None] = {
        "bf16": None,
        "mify block": Fp8Settings("block", "torch", 0, 0),
        "mify delayed": Fp8Settings("delayed", "torch", 0, 0),
        "mify current": Fp8Settings("current", "torch", 0, 0),
        "te block": Fp8Settings("block", "te", 0, 0),
        "te delayed": Fp8Settings("delayed", "te", 0, 0),
        "te current": Fp8Settings("current", "te", 0, 0),
    }
    for name, one in settings.items():
        try:
            calls[name] = _layer_call(config, tokens, one)
        except Exception as error:  # noqa: BLE001 -- whatever a backend raises is the reason that its row gives
            absent[name] = str(getattr(error, "problem", f"{type(error).__name__}: {error}"))[:200]
    return calls, absent


def _layer_call(config: ModelConfig, tokens: int, settings: Fp8Settings | None) -> Call:
    from dataclasses import replace

    from mify import fp8
    from mify.layers import norm_linears
    from mify.model import Model

    model = Model(replace(config, num_layers=1, vocab_size=256)).to("cuda", torch.bfloat16)
    if settings is not None:
        fp8.to_fp8(model, settings)
    layer: Any = model.model.layers[0]
    x, stream = (random_like_activations(tokens, config.hidden_size, dtype=torch.bfloat16, device="cuda", seed=seed)
                 for seed in (2, 3))  # fmt: skip
    leaves = [x.requires_grad_(), stream.requires_grad_()]
    weights = [parameter for parameter in layer.parameters() if isinstance(parameter, nn.Parameter)]
    grad = random_like_activations(tokens, config.hidden_size, dtype=torch.bfloat16, device="cuda", seed=4)

    def forward() -> tuple[Tensor, Tensor]:
        (q, k, v), total = norm_linears(layer.input_layernorm, x, stream, layer.self_attn.projections())
        # In the place of attention: what has its shape and uses all three.
        mixed = q * (1 + k.sum() + v.sum()) * 0.5
        attended = layer.self_attn.o_proj(mixed)
        (gate, up), total = norm_linears(layer.post_attention_layernorm, attended, total, layer.mlp.projections())
        return layer.mlp(gate, up), total

    def call() -> Any:
        recipe = settings is not None and settings.backend == "te"
        if recipe and settings is not None:
            made = transformer_engine.make_recipe(settings.recipe, history=settings.amax_history, margin=0)
            with transformer_engine.autocast(made):
                outs = forward()
        else:
            outs = forward()
        return torch.autograd.grad(outs, [*leaves, *weights], [grad, grad])

    for _ in range(2):  # delayed scaling has its scales from the second step on
        call()
        if settings is not None:
            fp8.end_step(model)
    return call
