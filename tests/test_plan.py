"""`mify plan`: the predictions against arithmetic done by hand, and the sizes of what really is stored."""

from __future__ import annotations

import math

import pytest

from mify.config import model_config
from mify.errors import MifyError
from mify.hardware import GPU_SPECS, gpu_spec
from mify.plan import RESERVED_BYTES, Plan, Run, make_plan, parse_count, parse_gpus
from mify.plan_lines import duration

PARAMETERS = 2_537_720_320


def _plan(gpus: str = "64xH100", **changes: object) -> Plan:
    count, spec = parse_gpus(gpus)
    values: dict[str, object] = {
        "model": model_config("mify-2.5b"), "tokens": 4_200_000_000_000, "gpu": spec, "num_gpus": count,
    }  # fmt: skip
    return make_plan(Run(**(values | changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4.2T", 4_200_000_000_000),
        ("200B", 200_000_000_000),
        ("50m", 50_000_000),
        ("2_097_152", 2_097_152),
        (" 7 K", 7000),
    ],
)
def test_counts_are_read(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "many", "4.2X", "-3B", "0", "1e9", "4.2.1T"])
def test_unreadable_counts_are_refused(text: str) -> None:
    with pytest.raises(MifyError, match="tokens"):
        parse_count(text)


def test_gpus_are_read() -> None:
    assert parse_gpus("64xH100") == (64, GPU_SPECS["H100"])
    assert parse_gpus("8 × h200") == (8, GPU_SPECS["H200"])
    assert parse_gpus("A100") == (1, GPU_SPECS["A100"])
    assert gpu_spec("NVIDIA H100 80GB HBM3") is GPU_SPECS["H100"]
    for text in ("0xH100", "64", "", "xx"):
        with pytest.raises(MifyError):
            parse_gpus(text)
    with pytest.raises(MifyError, match="B300"):
        parse_gpus("8xB300")


def test_the_days_of_the_published_run_by_hand() -> None:
    figures = _plan().figures
    per_token = 6 * 2_369_781_760 + 12 * 32 * 20 * 128 * 4096.5
    assert figures["flops_per_token"] == per_token
    seconds = per_token * 4.2e12 / (64 * 989.4e12 * 0.40)
    assert math.isclose(figures["days"], seconds / 86400)
    assert 34 < figures["days"] < 36
    assert math.isclose(figures["gpu_hours"], 64 * seconds / 3600)
    assert math.isclose(figures["tokens_per_second"] * seconds, 4.2e12)


def test_compute_optimality_by_hand() -> None:
    figures = _plan().figures
    assert figures["parameters"] == PARAMETERS
    assert math.isclose(figures["tokens_per_parameter"], 4.2e12 / PARAMETERS)
    assert math.isclose(figures["times_compute_optimal"], 4.2e12 / PARAMETERS / 20)
    optimal = figures["same_compute_optimal_parameters"]
    assert math.isclose(6 * optimal * (20 * optimal), figures["total_flops"])


def test_batch_steps_and_accumulation() -> None:
    figures = _plan().figures
    assert figures["gradient_accumulation"] == 4
    assert figures["global_batch_tokens"] == 4 * 64 * 8192 == 2**21
    assert figures["steps"] == math.ceil(4.2e12 / 2**21)
    # A batch that the GPUs exceed in one pass is not divided further.
    assert _plan("256xH100", rows=4).figures["gradient_accumulation"] == 1
    steps = figures["steps"] * figures["step_seconds"] / 86400
    assert math.isclose(steps, figures["days"], rel_tol=1e-5)


def test_memory_by_sharding_by_hand() -> None:
    shardings = {sharding.name: sharding for sharding in _plan().shardings}
    assert shardings["DDP"].state_bytes == 16 * PARAMETERS
    assert shardings["FSDP2"].state_bytes == 16 * PARAMETERS // 64
    assert shardings["HSDP"].state_bytes == 16 * PARAMETERS // 8
    ddp = shardings["DDP"]
    assert ddp.total_bytes == ddp.state_bytes + 2 * PARAMETERS + ddp.activation_bytes + RESERVED_BYTES
    assert all(sharding.checkpointed_bytes < sharding.activation_bytes / 4 for sharding in shardings.values())


def test_communication_by_hand() -> None:
    shardings = {sharding.name: sharding for sharding in _plan().shardings}
    # A ring all-reduce of 4 bytes a parameter between nodes, at 70% of 50 GB/s.
    assert shardings["DDP"].communication_bytes == 2 * 4 * PARAMETERS * 63 // 64
    assert math.isclose(shardings["DDP"].communication_seconds, 2 * 4 * PARAMETERS * 63 / 64 / 35e9, rel_tol=1e-6)
    # Four micro-batches, each two gathers of bf16 weights and a scatter of fp32 gradients.
    assert math.isclose(shardings["FSDP2"].communication_bytes, 4 * 8 * PARAMETERS * 63 / 64, rel_tol=1e-6)
    in_node, between = 4 * 8 * PARAMETERS * 7 / 8, 2 * 4 * PARAMETERS / 8 * 7 / 8
    expected = in_node / (0.7 * 450e9) + between / 35e9
    assert math.isclose(shardings["HSDP"].communication_seconds, expected, rel_tol=1e-6)


def test_which_shardings_make_sense() -> None:
    assert [sharding.name for sharding in _plan("1xH100").shardings] == ["DDP"]
    assert [sharding.name for sharding in _plan("8xH100").shardings] == ["DDP", "FSDP2"]
    assert [sharding.name for sharding in _plan("16xH100").shardings] == ["DDP", "FSDP2", "HSDP"]
    assert _plan("1xH100").shardings[0].communication_bytes == 0


def test_what_fits_is_chosen_and_what_does_not_is_said() -> None:
    large = model_config("mify-2.5b", num_layers=64, hidden_size=4096, ffn_size=11008, num_query_heads=32)
    plan = _plan("8xH100", model=large)
    fits = {sharding.name: sharding.fits for sharding in plan.shardings}
    assert fits == {"DDP": "no", "FSDP2": "with checkpointing"}
    assert plan.chosen == "FSDP2"
    nothing = _plan("1xA100", model=large)
    assert nothing.chosen is None
    assert "nothing fits" in nothing.advice
    assert "more GPUs" in nothing.advice


def test_shorter_documents_cost_less_attention_and_wider_vocabularies_more_disk() -> None:
    packed = _plan(document=1024).figures
    assert packed["flops_per_token"] == 6 * 2_369_781_760 + 12 * 32 * 20 * 128 * 512.5
    assert packed["token_shard_bytes"] == 2 * 4_200_000_000_000
    wide = _plan(model=model_config("mify-2.5b", vocab_size=65_537)).figures
    assert wide["token_shard_bytes"] == 4 * 4_200_000_000_000


@pytest.mark.parametrize(
    "changes",
    [{"mfu": 0.0}, {"mfu": 40.0}, {"document": 9000}, {"rows": 0}, {"num_gpus": 0}, {"global_batch_tokens": 0}],
)
def test_bad_input_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(MifyError):
        _plan(**changes)


def test_durations_read_well() -> None:
    assert [duration(days) for days in (35.04, 0.5, 0.01)] == ["35.0 days", "12.0 hours", "14.4 minutes"]
