"""FP8 in a model: which linear layers compute in it, by which backend, and what a training step must tell them.

    to_fp8(model, Fp8Settings(recipe="block"))      the model's linear layers become Fp8Linear, in place
    with microbatch(model, first=True): …           around a forward pass (and its backward) of a training step
    end_step(model)                                 after the optimizer's step
    state_was_loaded(model)                         after a checkpoint was read into it

Embedding and output matrix stay as they are: one is looked up, the other is part of the fused loss. So do the first and
the last layers by default, which lose most by FP8.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mify.config import Fp8Backend, Fp8Settings
from mify.errors import MifyError
from mify.kernels import dispatch
from mify.kernels.gemm import fp8 as transformer_engine
from mify.kernels.gemm import gemm, scaling
from mify.kernels.gemm.scaling import Kind
from mify.layers import Fp8Linear
from mify.model import Model


def why_not(backend: Fp8Backend, recipe: Kind, device: torch.device) -> str:
    """Why a backend cannot compute a recipe on `device`, or ""."""
    if backend == "te":
        return transformer_engine.why_not(recipe)
    if backend != "torch":
        return ""
    shape = {"m": 16, "n": 16, "k": 16, "blocks": int(recipe == "block")}
    try:
        dispatch.choose("gemm", "torch", dispatch.describe(device), torch.float8_e4m3fn, shape)
    except ValueError as error:
        return str(error).rpartition("cannot run here: ")[2]
    return ""


def linear_names(model: nn.Module, settings: Fp8Settings) -> list[str]:
    """The linear layers that `settings` puts into FP8, by name, in the model's order."""
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    chosen = range(settings.first_layers, len(layers) - settings.last_layers)
    found = [
        f"model.layers.{index}.{name}"
        for index in chosen
        for name, module in layers[index].named_modules()
        if isinstance(module, nn.Linear | Fp8Linear)
    ]
    return [name for name in found if not any(fnmatch.fnmatchcase(name, pattern) for pattern in settings.keep)]


def to_fp8(model: Model, settings: Fp8Settings, device: torch.device | None = None) -> list[str]:
    """Puts the model's linear layers into FP8, in place, and returns their names.

    Args:
        device: where the model will compute; None: where it is.

    Raises:
        MifyError: no layer is left to put into FP8; a width that FP8 products do not take; a backend that cannot run
            here, with the reason.
    """
    where = device if device is not None else model.head_weight.device
    reason = why_not(settings.backend, settings.recipe, where)
    if reason:
        raise MifyError(
            f"fp8.backend = {settings.backend} cannot compute the recipe {settings.recipe} here: {reason}",
            "use fp8.backend = emulation for the same numerics anywhere; `mify doctor` lists what runs",
        )
    names = linear_names(model, settings)
    if not names:
        raise MifyError(
            f"no linear layer is left for FP8: {model.config.num_layers} layers, of which fp8.first_layers = "
            f"{settings.first_layers} and fp8.last_layers = {settings.last_layers} are kept, besides {settings.keep}",
            "lower fp8.first_layers and fp8.last_layers, or name less in fp8.keep",
        )
    impl = model.impl
    if settings.backend in ("torch", "emulation"):
        wish = f"gemm={'ref' if settings.backend == 'emulation' else 'torch'}"
        impl = wish if impl == "auto" else f"{impl},{wish}"
    for name in names:
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise MifyError(f"{name} computes in FP8 already", "put a model into FP8 once")
        if linear.in_features % gemm.ALIGN or linear.out_features % gemm.ALIGN:
            raise MifyError(
                f"{name} is {linear.in_features} → {linear.out_features}; FP8 products take multiples of {gemm.ALIGN}",
                f'leave it out with fp8.keep = ["*.{name.rpartition(".")[2]}"], or choose other widths',
            )
        parent, _, child = name.rpartition(".")
        weight = linear.weight
        assert isinstance(weight, nn.Parameter)
        replacement = Fp8Linear(
            weight, settings.recipe, engine=settings.backend == "te", impl=impl, history=settings.amax_history,
            margin=settings.margin,
        )  # fmt: skip
        setattr(model.get_submodule(parent), child, replacement)
    model.__dict__["fp8_settings"] = settings
    return names


def settings_of(model: nn.Module) -> Fp8Settings | None:
    """What `to_fp8` was called with, or None for a model without FP8."""
    settings: Fp8Settings | None = model.__dict__.get("fp8_settings")
    return settings


def fp8_layers(model: nn.Module) -> Iterator[Fp8Linear]:
    """The model's FP8 layers."""
    return (module for module in model.modules() if isinstance(module, Fp8Linear))


@contextmanager
def microbatch(model: nn.Module, *, first: bool, group: Any = None) -> Iterator[None]:
    """One forward pass of a training step. The first of a step quantizes the weights, the others take them from it.

    Args:
        group: the ranks that train this model together, None for all of them. Transformer Engine shares the largest
            values of delayed scaling over it; for our own layers `end_step` does.
    """
    settings = settings_of(model)
    if settings is None:
        yield
        return
    if settings.cache_weights:
        for layer in fp8_layers(model):
            layer.first_microbatch = first
    context: Any = nullcontext()
    if settings.backend == "te":
        context = transformer_engine.autocast(_engine_recipe(settings), group)
    with context:
        yield


def end_step(model: nn.Module, share: Callable[[Tensor], Any] | None = None, *, gradient_factor: float = 1.0) -> None:
    """The end of a training step: kept weights are dropped, delayed scales take the step's largest values in.

    Args:
        share: makes a tensor the element-wise maximum over ranks, in place; None with one rank.
        gradient_factor: see `mify.kernels.gemm.scaling.update`.
    """
    layers = list(fp8_layers(model))
    states = []
    for layer in layers:
        layer.forget()
        if layer.engine and layer.kind == "delayed":
            for name, tensor in transformer_engine.read_state(layer.engine[0]).items():
                layer.get_buffer(f"fp8_{name}").copy_(tensor)
        state = layer.state(recording=True)
        if state is not None:
            states.append(state)
    if not states:
        return
    if share is not None:
        together = torch.stack([layer.get_buffer("fp8_amax") for layer in layers])
        share(together)
        for layer, amax in zip(layers, together, strict=True):
            layer.get_buffer("fp8_amax").copy_(amax)
    scaling.update(states, layers[0].margin, gradient_factor)
    for layer, state in zip(layers, states, strict=True):
        # Only until the first good step: it reads the device.
        layer.ready = layer.ready or scaling.ready(state)


def state_was_loaded(model: nn.Module, *, gradient_factor: float = 1.0) -> None:
    """Takes up what a checkpoint put into the layers' buffers.

    Args:
        gradient_factor: of this run, which may have another number of ranks than the one that wrote the checkpoint.
    """
    settings = settings_of(model)
    for layer in fp8_layers(model):
        layer.state_was_loaded(gradient_factor)
        if (
            settings is not None
            and layer.engine
            and layer.kind == "delayed"
            and bool(layer.get_buffer("fp8_scale_fwd").any())
        ):
            state = {name: layer.get_buffer(f"fp8_{name}") for name in transformer_engine.STATE}
            transformer_engine.write_state(layer.engine[0], _engine_recipe(settings), state)


def _engine_recipe(settings: Fp8Settings) -> Any:
    return transformer_engine.make_recipe(settings.recipe, history=settings.amax_history, margin=settings.margin)
