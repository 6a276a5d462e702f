"""Quantized folders against `compressed-tensors` itself, and against `transformers` running them on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mify.errors import MifyError
from mify.export.hf import HfWeights, export_hf, import_hf
from mify.export.quantized import export_quantized, scheme_of
from mify.export.weights import tensor_shapes
from mify.model import Model
from mify.quantization.scheme import Scheme, pack, unpack
from mify.tokenizer import Tokenizer

KINDS = ["fp8", "int8", "int4"]
GOLDEN = Path(__file__).parent / "golden"
# Root mean square error over root mean square, of normal weights.
ERRORS = {"fp8": 0.027, "int8": 0.008, "int4": 0.12}


def theirs() -> Any:
    return pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")


def scheme(kind: str) -> Scheme:
    return Scheme(kind, 32 if kind == "int4" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_tensors_reads_the_settings_as_its_own_preset(kind: str) -> None:
    theirs()
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    found = QuantizationConfig.model_validate(scheme_of(kind, _config()).quantization_config())
    group = found.config_groups["group_0"]
    preset = preset_name_to_scheme({"fp8": "FP8_DYNAMIC", "int8": "W8A8", "int4": "W4A16"}[kind], ["Linear"])
    for ours, expected in ((group.weights, preset.weights), (group.input_activations, preset.input_activations)):
        if expected is None:
            assert ours is None
            continue
        for field in ("num_bits", "type", "symmetric", "strategy", "dynamic", "group_size"):
            assert getattr(ours, field) == getattr(expected, field), field
    assert found.format == {"fp8": "float-quantized", "int8": "int-quantized", "int4": "pack-quantized"}[kind]
    assert found.ignore == ["lm_head"]


def _config() -> Any:
    from mify.config import model_config

    return model_config("mify-2.5b")


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_tensors_decodes_what_we_encode_and_encodes_the_same(kind: str) -> None:
    theirs()
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    ours = scheme(kind)
    settings = QuantizationConfig.model_validate(ours.quantization_config())
    group = settings.config_groups["group_0"]
    compressor = BaseCompressor.load_from_registry(settings.format)
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(1))
    weight[5] = 0.0
    stored = ours.encode(weight)
    entries = ours.entries((48, 96))
    assert {name: (part.dtype, tuple(part.shape)) for name, part in stored.items()} == {
        name: (entry.dtype, entry.shape) for name, entry in entries.items()
    }
    decoded = compressor.decompress(dict(stored), group)["weight"].float()
    ours_decoded = ours.decode(stored)
    # They multiply in the scale's dtype, bf16; we in fp32.
    assert torch.equal(decoded, ours_decoded.bfloat16().float())
    rms = float((ours_decoded - weight).square().mean().sqrt() / weight.square().mean().sqrt())
    assert rms <= ERRORS[kind]
    if kind == "int4":
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        levels = unpack(stored["weight_packed"], 4)
        assert torch.equal(pack_to_int32(levels, 4), stored["weight_packed"])
    else:
        encoded = compressor.compress({"weight": weight, "weight_scale": stored["weight_scale"].float()}, group)
        assert torch.equal(encoded["weight"].float(), stored["weight"].float())


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_is_that_of_llmcompressor_and_the_error_no_larger(tmp_path: Path, kind: str) -> None:
    """golden/llmcompressor-* was written by llmcompressor 0.14.0.1 (golden/make_llmcompressor.py)."""
    from safetensors.torch import load_file

    golden = GOLDEN / f"llmcompressor-{kind}"
    export_quantized(HfWeights(GOLDEN / "source"), tmp_path / "ours", kind)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    expected = load_file(golden / "model.safetensors")
    assert {name: (part.dtype, part.shape) for name, part in ours.items()} == {
        name: (part.dtype, part.shape) for name, part in expected.items()
    }
    for name, part in expected.items():
        if not name.rpartition(".")[0].endswith("_proj"):
            assert torch.equal(ours[name], part), name
    if kind == "fp8":
        scales = [name for name in expected if name.endswith("weight_scale")]
        assert all(torch.equal(ours[name], expected[name]) for name in scales)
    settings = [
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (tmp_path / "ours", golden)
    ]
    for found in settings:
        found["config_groups"]["group_0"]["weights"].pop("observer")
    assert settings[0] == settings[1]

    source = HfWeights(GOLDEN / "source")
    a, b = HfWeights(tmp_path / "ours"), HfWeights(golden)
    for name in expected_linears(source):
        weight = source.tensor(name).float()
        assert (a.tensor(name) - weight).square().sum() <= (b.tensor(name) - weight).square().sum(), name


def expected_linears(weights: HfWeights) -> list[str]:
    names = [name for name in tensor_shapes(weights.config) if name.endswith("_proj.weight")]
    assert len(names) == 7
    return names


def test_packing_is_reversible_at_every_level() -> None:
    levels = torch.randint(-8, 8, (7, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    levels[0, :16] = torch.arange(-8, 8)
    assert torch.equal(unpack(pack(levels, 4), 4), levels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_runs_it(
    tmp_path: Path, make_model: Callable[..., Model], logits: Callable, tokenizer: Tokenizer, kind: str, tied: bool
) -> None:
    theirs()
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    export_quantized(make_model(tie_embeddings=tied), tmp_path / kind, kind, dtype=torch.float32)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / kind, dtype=torch.float32).eval()
    ours = import_hf(tmp_path / kind)
    ids = tokenizer.encode("import os\n\nclass Parser:\n")
    with torch.no_grad():
        found = loaded(torch.tensor([ids])).logits[0]
    for name, parameter in ours.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], parameter), name
    if kind != "int4":  # W8A8 also rounds what goes into each linear layer, token by token
        for name, module in ours.named_modules():
            if name.endswith("_proj"):
                module.register_forward_pre_hook(lambda _, inputs: (round_tokens(inputs[0], kind),))
    expected = logits(ours, ids)
    # Sums in another order move a few values across a rounding boundary of the activations.
    limit = {"fp8": 0.02, "int8": 0.02, "int4": 1e-5}[kind]
    assert float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt()) <= limit
    assert (found[0] - expected[0]).abs().max() <= 1e-4


def round_tokens(x: torch.Tensor, kind: str) -> torch.Tensor:
    amax = x.abs().amax(-1, keepdim=True)
    if kind == "fp8":
        scale = amax / 448.0
        return (x / scale).to(torch.float8_e4m3fn).float() * scale
    scale = amax / 127.5  # as compressed-tensors has it for activations
    return (x / scale).round().clamp(-128, 127) * scale


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_folder_is_imported(tmp_path: Path, make_model: Callable[..., Model], kind: str) -> None:
    model = make_model()
    export_quantized(model, tmp_path / kind, kind, dtype=torch.float32, max_shard_bytes=60_000)
    again = import_hf(tmp_path / kind)
    for (name, tensor), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        if name.endswith("_proj.weight"):
            assert torch.equal(other, scheme(kind).decode(scheme(kind).encode(tensor))), name
        else:
            assert torch.equal(other, tensor), name
    export_hf(HfWeights(tmp_path / kind), tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert torch.equal(import_hf(tmp_path / "plain").head_weight, again.head_weight)


@pytest.mark.parametrize("kind", KINDS)
def test_same_model_gives_the_same_bytes_streamed_or_not(
    tmp_path: Path, make_model: Callable[..., Model], kind: str, folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    export_hf(make_model(), tmp_path / "hf")
    export_quantized(make_model(), tmp_path / "one", kind)
    export_quantized(HfWeights(tmp_path / "hf"), tmp_path / "two", kind)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_group_sizes_fit_the_model(make_model: Callable[..., Model]) -> None:
    assert scheme_of("int4", _config()).group_size == 128
    config = make_model().config
    assert scheme_of("int4", config).group_size == 32
    with pytest.raises(MifyError, match=r"no group size \(128\) divides"):
        scheme_of("int4", config, 128)
    with pytest.raises(MifyError, match="unknown quantization 'int3'"):
        scheme_of("int3", config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quant_method": "awq"}, "'awq'"),
        ({"format": "nvfp4-pack-quantized"}, "nvfp4"),
        ({"format": "int-quantized"}, "stored as float8_e4m3fn"),
    ],
)
def test_layouts_that_cannot_be_decoded_are_refused_by_name(
    tmp_path: Path, make_model: Callable[..., Model], change: dict[str, Any], named: str
) -> None:
    export_quantized(make_model(), tmp_path / "q", "fp8")
    path = tmp_path / "q" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(MifyError, match=named):
        import_hf(tmp_path / "q")
