"""The cost model against torch's own FLOP counter, brute force, hand counts, and what autograd really saves."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mify.config import ModelConfig, model_config
from mify.kernels import cost, row_cost
from mify.kernels.attention import gqa_ref
from mify.model import Model

SMALL = ModelConfig("small", 3, 48, 6, 2, 16, 80, 97, 64, tie_embeddings=False)
TIED = ModelConfig("tied", 2, 32, 4, 4, 8, 40, 101, 64, tie_embeddings=True)


def _pairs_by_loop(lengths: list[int], causal: bool, window: int) -> int:
    count = 0
    for length in lengths:
        for query in range(length):
            for key in range(length):
                inside = not window or abs(query - key) < window
                count += inside and (not causal or key <= query)
    return count


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 3, 8, 100])
def test_visible_pairs_are_those_a_loop_finds(causal: bool, window: int) -> None:
    lengths = [0, 1, 2, 7, 8, 9, 13]
    expected = _pairs_by_loop(lengths, causal, window)
    assert cost.visible_pairs(lengths, causal=causal, window=window) == expected


def test_negative_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        cost.visible_pairs([3, -1])
    with pytest.raises(ValueError, match="document"):
        cost.Workload.uniform(10, 0)


def test_uniform_documents_are_the_same_as_listed_ones() -> None:
    assert cost.Workload.uniform(100, 30) == cost.Workload.documents([30, 30, 30, 10])
    assert cost.Workload.uniform(100, 30, window=7) == cost.Workload.documents([30, 30, 30, 10], window=7)


def test_linear_flops_equal_torchs_counter() -> None:
    x = torch.randn(24, 40, requires_grad=True)
    weight = torch.randn(40, 56, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = x @ weight
    assert counter.get_total_flops() == cost.matmul(24, 56, 40).flops
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == cost.linear_backward(24, 56, 40).flops


def test_attention_flops_equal_torchs_counter_on_the_whole_square() -> None:
    tokens, heads, dim = 20, 6, 16
    q = torch.randn(tokens, heads, dim, requires_grad=True)
    k, v = (torch.randn(tokens, 2, dim, requires_grad=True) for _ in range(2))
    square = cost.visible_pairs([tokens], causal=False)
    with FlopCounterMode(display=False) as counter:
        out, _ = gqa_ref.forward(q, k, v, [0, tokens], causal=False, window=0, scale=0.25)
    assert counter.get_total_flops() == cost.gqa_forward(square, tokens, heads, 2, dim).flops
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == cost.gqa_backward(square, tokens, heads, 2, dim).flops


@pytest.mark.parametrize("config", [SMALL, TIED], ids=lambda config: config.name)
def test_model_flops_equal_torchs_counter(config: ModelConfig) -> None:
    tokens = 24
    model = Model(config, impl="ref")
    ids = torch.randint(config.vocab_size, (tokens,))
    bounds = torch.tensor([0, tokens], dtype=torch.int32)
    with FlopCounterMode(display=False) as counter:
        model.logits(model(ids, torch.arange(tokens), bounds, tokens))
    # Attention is an op of its own, into which the counter does not look: the test before this one counts it.
    flops = cost.model_flops(config, cost.Workload.documents([tokens]))
    assert counter.get_total_flops() == flops.forward - flops.attention_forward


@pytest.mark.parametrize("name", ["mify-2.5b", "mify-350m", "mify-125m", "mify-tiny"])
def test_parameters_agree_with_the_configuration_and_the_tensors(name: str) -> None:
    config = model_config(name)
    counts = cost.parameters(config)
    assert counts.total == config.num_parameters()
    with torch.device("meta"):
        assert counts.total == sum(parameter.numel() for parameter in Model(config).parameters())


def test_the_figures_of_the_large_model_by_hand() -> None:
    config = model_config("mify-2.5b")
    # 32 layers of 2·2560·24·128 + 3·2560·6912 = 68,812,800, and the output matrix of 65,536·2560.
    assert cost.matmul_parameters(config) == 32 * 68_812_800 + 167_772_160
    per_token = cost.flops_per_token(config, 8192)
    assert per_token == 6 * 2_369_781_760 + 12 * 32 * 20 * 128 * 8193 / 2
    # 50% of 989 TFLOP/s over visible pairs is 27,100 tokens/s, over the whole square 22,200, by 6N alone 34,800.
    half = 0.5 * 989e12
    assert round(half / per_token, -2) == 27_100
    square = 6 * cost.matmul_parameters(config) + 12 * 32 * 8192 * 20 * 128
    assert round(half / square, -2) == 22_200
    assert round(half / (6 * cost.matmul_parameters(config)), -2) == 34_800


def test_backward_is_twice_forward_and_recomputation_adds_half_of_attention() -> None:
    work = cost.Workload.documents([5, 9], labelled=4)
    flops = cost.model_flops(SMALL, work)
    assert flops.backward == 2 * flops.forward
    more = cost.model_flops(SMALL, work, recomputed=True)
    assert more.total - flops.total == flops.attention_forward // 2
    assert flops.head_forward == 2 * 97 * 48 * 4


def test_decode_bytes_by_hand() -> None:
    # Batch 1, 1,024 keys, 32/8/128 in bf16: 4.2 MB, which an H200 reads in about 0.9 µs.
    one = cost.gqa_decode([1024], 32, 8, 128)
    assert one.read == 2 * 1024 * 8 * 128 * 2 + 32 * 128 * 2 + 4
    assert one.written == 32 * 128 * 2
    assert one.flops == 4 * 1024 * 32 * 128
    assert 0.85e-6 < one.seconds(989e12, 4.8e12) < 0.95e-6
    paged = cost.gqa_decode([1024, 0, 65], 32, 8, 128, kv_element=1, page_size=64)
    assert paged.read == 2 * 1089 * 8 * 128 + 3 * 32 * 128 * 2 + (16 + 0 + 2) * 4 + 3 * 4


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        # 4,096 × 2,560 in bf16 is 20,971,520 bytes.
        (row_cost.rms_norm_forward(4096, 2560), 2 * 20_971_520 + 2560 * 2 + 4096 * 4),
        (row_cost.rms_norm_forward(4096, 2560, residual=True), 4 * 20_971_520 + 2560 * 2 + 4096 * 4),
        (row_cost.rms_norm_backward(4096, 2560), 3 * 20_971_520 + 2560 * 2 + 4096 * 4 + 2560 * 4),
        (row_cost.swiglu_forward(4096, 2560), 3 * 20_971_520),
        (row_cost.swiglu_backward(4096, 2560), 5 * 20_971_520),
        (row_cost.rope(4096, 20, 4, 128), 2 * 4096 * 24 * 128 * 2 + 4096 * 128 * 4),
        (row_cost.cross_entropy_forward(512, 1000), 512 * 1000 * 2 + 512 * 16),
        (row_cost.cross_entropy_backward(512, 1000), 2 * 512 * 1000 * 2 + 512 * 16),
        (row_cost.adamw(1000), 1000 * (12 + 4 + 12)),
        (row_cost.adamw(1000, compute=2), 1000 * (12 + 4 + 14)),
    ],
)
def test_bytes_of_element_wise_ops_by_hand(measured: cost.Cost, expected: int) -> None:
    assert measured.bytes == expected
    assert measured.flops == 0
    assert measured.intensity == 0


def test_fusing_both_fp8_layouts_with_a_residual_saves_a_third() -> None:
    # The roofline of norm + residual with both layouts against norm, then quantize twice: 1.5.
    tokens, d = 8192, 2560
    size = tokens * d
    fused = row_cost.rms_norm_forward(tokens, d, residual=True, fp8_layouts=2).bytes
    quantize = size * 2 + size + size // 128 * 4
    apart = row_cost.rms_norm_forward(tokens, d, residual=True).bytes + 2 * quantize
    assert math.isclose(apart / fused, 1.75, rel_tol=0.03)
    together = row_cost.rms_norm_forward(tokens, d, residual=True).bytes + size * 2 + 2 * (size + size // 128 * 4)
    assert math.isclose(together / fused, 1.5, rel_tol=0.03)


def test_bytes_of_fp8_layouts_by_hand() -> None:
    # 130 x 200: two blocks of features a token; in the transpose 256 tokens, two blocks of them a feature.
    one = 130 * 200 + 130 * 2 * 4
    both = one + 256 * 200 + 200 * 2 * 4
    assert row_cost.quantize_fp8(130, 200, 1) == cost.Cost(0, 130 * 200 * 2, one)
    assert row_cost.quantize_fp8(130, 200, 2) == cost.Cost(0, 130 * 200 * 2, both)
    assert row_cost.quantize_fp8(130, 200, 2, delayed=True).written == 130 * 200 + 256 * 200
    assert row_cost.swiglu_forward(130, 200, fp8_layouts=2).written == both
    norm = row_cost.rms_norm_forward(130, 200, residual=True, fp8_layouts=1)
    assert norm == cost.Cost(0, 2 * 130 * 200 * 2 + 200 * 2, 130 * 200 * 2 + one + 130 * 4)


def test_linear_cross_entropy_of_the_target_shape() -> None:
    one = row_cost.linear_cross_entropy(8192, 2560, 65_536)
    assert round(one.flops / 1e12, 2) == 8.25
    assert round(one.flops / 700e12 * 1e3, 1) == 11.8


def test_costs_add_and_multiply() -> None:
    one, two = cost.Cost(4, 2, 1), cost.Cost(1, 1, 1)
    assert one + two == cost.Cost(5, 3, 2)
    assert 3 * one == one * 3 == cost.Cost(12, 6, 3)
    assert cost.Cost(1).intensity == math.inf
    assert cost.Cost(100, 10, 10).seconds(10, 1) == 20
    assert cost.Cost(1000, 10, 10).seconds(10, 1) == 100


def _saved_bytes(model: Model, tokens: int) -> int:
    """The bytes of distinct storages that autograd keeps for backward, parameters and inputs aside."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(model.config.vocab_size, (tokens,))
    bounds = torch.tensor([0, tokens], dtype=torch.int32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, torch.arange(tokens), bounds, tokens)
    return sum(storage.nbytes() for storage in kept.values())


def test_a_layer_keeps_the_activations_that_the_formula_says() -> None:
    tokens = 64
    sizes = {}
    for layers in (1, 2):
        config = ModelConfig("x", layers, 48, 6, 2, 16, 80, 97, 64, tie_embeddings=True)
        sizes[layers] = _saved_bytes(Model(config, impl="ref"), tokens)
    one = ModelConfig("x", 1, 48, 6, 2, 16, 80, 97, 64)
    two = ModelConfig("x", 2, 48, 6, 2, 16, 80, 97, 64)
    formula = cost.activation_bytes(two, tokens, element=4) - cost.activation_bytes(one, tokens, element=4)
    assert sizes[2] - sizes[1] == formula


def test_checkpointing_keeps_one_input_a_layer_and_one_whole_layer() -> None:
    config = model_config("mify-2.5b")
    whole = cost.activation_bytes(config, 8192)
    less = cost.activation_bytes(config, 8192, checkpointing=True)
    layer = 8192 * ((4 * 2560 + 2 * 20 * 128 + 2 * 4 * 128 + 3 * 6912) * 2 + 22 * 4)
    assert whole - less == 31 * layer - 32 * 8192 * 2560 * 2


def test_training_state_is_sixteen_bytes_a_parameter() -> None:
    assert cost.StateBytes().kept == 16


def test_a_decode_step_reads_every_weight_once() -> None:
    config = model_config("mify-2.5b")
    one = cost.decode_step(config, 1, 1024)
    weights = 2 * cost.matmul_parameters(config)
    cache = cost.kv_cache_bytes(config, 1024)
    assert cache == 1024 * 32 * 2 * 4 * 128 * 2
    assert weights + cache < one.read < 1.001 * (weights + cache)
    many = cost.decode_step(config, 512, 1024, weight_element=1, kv_element=1)
    assert many.flops == 512 * one.flops
