"""The arithmetic of a plan as lines that a reader can check: what, how it was computed, what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mify.kernels import cost

if TYPE_CHECKING:
    from mify.plan import Run

# Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models": about 20 tokens a parameter.
OPTIMAL_TOKENS_PER_PARAMETER = 20


@dataclass(frozen=True, slots=True)
class Line:
    """One figure: what it is, how it was computed, what came out."""

    label: str
    arithmetic: str
    result: str


def lines_of(run: Run, counts: cost.Parameters, figures: dict[str, float], attention: float) -> dict[str, list[Line]]:
    """By part (parameters, compute, time, data) the lines of a plan. `attention` is in FLOPs a token."""
    m, gpu = run.model, run.gpu
    d, heads, kv, hd = m.hidden_size, m.num_query_heads, m.num_kv_heads, m.head_dim
    pairs = cost.visible_pairs([run.document]) / run.document
    embedding = f"{m.vocab_size:,} × {d:,}"
    return {
        "parameters": [
            Line("embedding", embedding, _count(counts.embedding)),
            Line("attention", f"{m.num_layers} × 2 × {d:,} × ({heads} + {kv}) × {hd}", _count(counts.attention)),
            Line("feed-forward", f"{m.num_layers} × 3 × {d:,} × {m.ffn_size:,}", _count(counts.ffn)),
            Line("norms", f"(2 × {m.num_layers} + 1) × {d:,}", _count(counts.norms)),
            Line("output matrix", "tied to the embedding" if m.tie_embeddings else embedding, _count(counts.head)),
            Line("parameters", "sum", _count(counts.total)),
        ],
        "compute": [
            Line(
                "linear, a token",
                f"6 × {_count(figures['matmul_parameters'])} (all but the embedding look-up)",
                f"{6 * figures['matmul_parameters'] / 1e9:.2f} GFLOP",
            ),
            Line(
                "attention, a token",
                f"12 × {m.num_layers} layers × {pairs:,.1f} visible keys × {heads} × {hd}",
                f"{attention / 1e9:.2f} GFLOP",
            ),
            Line("a token", "linear + attention", f"{figures['flops_per_token'] / 1e9:.2f} GFLOP"),
            Line(
                "the run",
                f"{_count(run.tokens)} tokens × {figures['flops_per_token'] / 1e9:.2f} GFLOP",
                f"{figures['total_flops']:.3g} FLOP",
            ),
        ],
        "time": [
            Line(
                "sustained",
                f"{run.num_gpus} × {gpu.bf16_flops / 1e12:.0f} TFLOP/s × {run.mfu:.0%} MFU",
                f"{run.num_gpus * gpu.bf16_flops * run.mfu / 1e15:.2f} PFLOP/s",
            ),
            Line(
                "tokens/s",
                f"sustained / {figures['flops_per_token'] / 1e9:.2f} GFLOP",
                f"{figures['tokens_per_second']:,.0f}, {figures['tokens_per_second_per_gpu']:,.0f} a GPU",
            ),
            Line(
                "duration",
                f"{figures['total_flops']:.3g} FLOP / sustained",
                f"{duration(figures['days'])}, {figures['gpu_hours']:,.1f} GPU hours",
            ),
            Line(
                "steps",
                f"batch {run.num_gpus} × {run.rows} × {run.context:,} × {figures['gradient_accumulation']:.0f} "
                f"accumulated = {figures['global_batch_tokens']:,.0f} tokens",
                f"{figures['steps']:,.0f} of {figures['step_seconds']:.2f} s",
            ),
        ],
        "data": [
            Line(
                "tokens a parameter",
                f"{_count(run.tokens)} / {_count(counts.total)}",
                f"{figures['tokens_per_parameter']:,.1f}, {_times(figures['times_compute_optimal'])} "
                f"the compute-optimal {OPTIMAL_TOKENS_PER_PARAMETER}",
            ),
            Line(
                "compute-optimal tokens",
                f"{OPTIMAL_TOKENS_PER_PARAMETER} × {_count(counts.total)}",
                _count(figures["compute_optimal_tokens"]),
            ),
            Line(
                "the same compute, optimally",
                f"N = √(FLOP / (6 × {OPTIMAL_TOKENS_PER_PARAMETER}))",
                f"{_count(figures['same_compute_optimal_parameters'])} on "
                f"{_count(OPTIMAL_TOKENS_PER_PARAMETER * figures['same_compute_optimal_parameters'])} tokens",
            ),
            Line(
                "token shards on disk",
                f"{_count(run.tokens)} × {figures['token_shard_bytes'] / run.tokens:.0f} bytes",
                f"{figures['token_shard_bytes'] / 1e9:,.1f} GB",
            ),
            Line(
                "a checkpoint",
                "12 bytes a parameter: weights, two moments",
                f"{figures['checkpoint_bytes'] / 1e9:.2f} GB",
            ),
        ],
    }


def _count(value: float) -> str:
    for suffix, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= unit:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.4g}"


def duration(days: float) -> str:
    """Days, hours or minutes, whichever reads best."""
    if days >= 1:
        return f"{days:,.1f} days"
    return f"{days * 24:.1f} hours" if days >= 1 / 24 else f"{days * 1440:.1f} minutes"


def _times(value: float) -> str:
    return f"{value:.1f}×" if value >= 0.1 else f"{value:.2g}×"
