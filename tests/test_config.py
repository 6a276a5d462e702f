"""Model configurations: presets as the design states them, arithmetic against the tensors, errors that help."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mify.config import PRESETS, ModelConfig, model_config
from mify.errors import MifyError
from mify.model import Model


@pytest.mark.parametrize("name", list(PRESETS))
def test_parameter_count_is_that_of_the_tensors(name: str) -> None:
    config = model_config(name)
    with torch.device("meta"):
        model = Model(config)
    counted = sum(p.numel() for p in model.parameters())
    assert config.num_parameters() == counted == model.num_parameters()
    embedding = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    assert config.num_non_embedding_parameters() == counted - embedding


def test_presets_have_their_sizes() -> None:
    assert 2.537e9 < model_config("mify-2.5b").num_parameters() < 2.539e9
    tiny = model_config("mify-tiny")
    assert tiny.num_parameters() <= 5_000_000
    assert (tiny.vocab_size, tiny.context, tiny.head_dim) == (4096, 512, 64)


def test_round_trip_and_overrides() -> None:
    config = model_config("mify-tiny", num_layers=2, name="two")
    assert config.num_layers == 2
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_layers = 3  # type: ignore[misc]


def test_integers_stand_for_floats() -> None:
    theta = model_config("mify-tiny", rope_theta=500000).rope_theta
    assert isinstance(theta, float)
    assert theta == 5e5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_layer": 2}, "did you mean 'num_layers'"),
        ({"zzz": 2}, "the keys are"),
        ({"num_query_heads": 3}, "not a multiple"),
        ({"head_dim": 63}, "odd"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": 2.0}, "num_layers"),
        ({"num_layers": True}, "num_layers"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_embeddings": "yes"}, "tie_embeddings"),
        ({"name": 3}, "name"),
    ],
)
def test_mistakes_are_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(MifyError, match=words):
        model_config("mify-tiny", **values)


def test_unknown_preset_and_missing_keys() -> None:
    with pytest.raises(MifyError, match="did you mean 'mify-tiny'"):
        model_config("mify-tini")
    with pytest.raises(MifyError, match="lacks num_layers"):
        ModelConfig.from_dict({"name": "x"})
