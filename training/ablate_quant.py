"""The study of quantized weights: FP8 against AWQ and int8, by size, speed, held-out bits per byte and pass@1.

Every method quantizes the same model with the same calibration text and is measured on the same documents, so the
difference in code length is paired document by document, with a bootstrap interval (`ablate.compare`). What engines
also round at run time, activations, is rounded here too. Finished rows are kept and not measured again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mify.errors import MifyError
from mify.files import read_json, sha256_file, write_json
from mify.hardware import gpu_spec
from mify.kernels import cost

from .ablate import compare
from .evaluate import HeldOut

if TYPE_CHECKING:
    from mify.config import ModelConfig
    from mify.model import Model

METHODS = ("fp8", "fp8-block", "awq8", "int8", "awq4")
FORMAT, VERSION = "mify-quantization-study", 1
# Bytes a weight of a linear layer, scales included (bf16 scales; groups of 128).
_WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8-block": 1.0, "int8": 1.0, "awq8": 1 + 2 / 128, "awq4": 0.5 + 2 / 128}
SPEED_ON = "H100"


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one model.

    Args:
        megabytes: of the stored tensors. seconds: quantizing took.
        decode_speedup: predicted, batch 1 on an H100 by bytes: times as many tokens a second as bf16. Not measured.
        bits_per_byte: over all held-out documents. change: its relative change, with a 95% interval.
        passed, problems: HumanEval, greedy; problems 0 where it was not run.
    """

    model: str
    method: str
    megabytes: float
    seconds: float
    decode_speedup: float
    bits_per_byte: float
    change: float
    low: float
    high: float
    passed: int
    problems: int


def run_quant_study(
    models: Sequence[Path],
    held_out: HeldOut,
    calibration: Path,
    out: Path,
    *,
    methods: Sequence[str] = METHODS,
    calibration_tokens: int = 4096,
    problems: int = 10,
    max_new_tokens: int = 128,
    say: Callable[[str], None],
) -> list[Row]:
    """Measures every method on every model; writes out/quantization.json.

    Args:
        calibration: see `calibration_sequences`. problems: of HumanEval, the first so many; 0 leaves pass@1 out.

    Raises:
        MifyError: an unknown method, no model, what quantizing raises.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not models:
        raise MifyError(
            f"unknown method {unknown[0]!r}" if unknown else "the study has no model",
            f"give {', '.join(METHODS)}" if unknown else "give --model",
        )
    rows: list[Row] = []
    for model in models:
        settings = {
            "held_out": held_out.identity, "calibration": _identity(calibration), "tokens": calibration_tokens,
            "problems": problems, "max_new_tokens": max_new_tokens, "model": _identity(model),
        }  # fmt: skip
        rows += _one_model(model, held_out, calibration, out / model.resolve().name, methods, settings, say)
    write_json(out / "quantization.json", {"format": FORMAT, "version": VERSION, "rows": [asdict(row) for row in rows]})
    return rows


def _one_model(
    path: Path,
    held_out: HeldOut,
    calibration: Path,
    out: Path,
    methods: Sequence[str],
    settings: dict[str, Any],
    say: Callable[[str], None],
) -> list[Row]:
    from mify.export.calibration import calibration_sequences
    from mify.loading import load, open_weights
    from mify.quantization.quantize import activations_rounded, quantize
    from mify.quantization.scheme import Scheme

    weights = open_weights(path)
    if weights.tokenizer is None:
        raise MifyError(f"{path} has no tokenizer", "add tokenizer.json")
    config = weights.config
    sequences = calibration_sequences(
        calibration, weights.tokenizer, context=config.context, tokens=settings["tokens"]
    )  # fmt: skip
    base: dict[str, Any] = {}
    rows = []
    for method in ("bf16", *methods):
        stored = out / f"{method}.json"
        found = read_json(stored) if stored.is_file() else {}
        if found.get("settings") != settings:
            say(f"{out.name}: {method}")
            report: dict[str, Any] = {"bytes": 2 * config.num_parameters(), "seconds": 0.0}
            scheme = None
            if method == "bf16":
                model = load(path)
            else:
                report = quantize(weights, out / method, method, sequences=sequences)
                scheme = Scheme(report["scheme"], report["group_size"] or 0)
                model = load(out / method)
            with activations_rounded(model, scheme):
                bits = held_out.document_bits(model)
                passed = _pass_at_1(model, out / f"{method}-humaneval", settings) if settings["problems"] else 0
            found = {
                "settings": settings, "bytes": report["bytes"], "seconds": report["seconds"], "bits": bits,
                "passed": passed,
            }  # fmt: skip
            write_json(stored, found)
        if method == "bf16":
            base = found
        rows.append(_row(config, out.name, method, base, found, settings["problems"]))
    return rows


def _row(
    config: ModelConfig, model: str, method: str, base: dict[str, Any], found: dict[str, Any], problems: int
) -> Row:
    def together(bits: dict[str, Any]) -> dict[str, list[tuple[str, int, float]]]:
        return {"all": [tuple(row) for rows in bits.values() for row in rows]}

    difference = compare("all", method, [together(base["bits"])], [together(found["bits"])])
    before = difference.baseline_value
    spec = gpu_spec(SPEED_ON)

    def seconds(weight_bytes: float) -> float:
        step = cost.decode_step(config, 1, 128, weight_element=1)
        linear = cost.parameters(config).attention + cost.parameters(config).ffn
        return (step.bytes + linear * (weight_bytes - 1)) / spec.reached_bandwidth

    return Row(
        model, method, found["bytes"] / 1e6, found["seconds"],
        seconds(_WEIGHT_BYTES["bf16"]) / seconds(_WEIGHT_BYTES[method]), difference.value,
        difference.mean / before, difference.low / before, difference.high / before, found["passed"], problems,
    )  # fmt: skip


def _pass_at_1(model: Model, out: Path, settings: dict[str, Any]) -> int:
    from mify.eval.completers import MifyCompleter
    from mify.eval.humaneval import humaneval
    from mify.eval.runner import RunOptions, run_task

    completer = MifyCompleter(model, out.name, {"name": out.name, **settings})
    options = RunOptions(limit=settings["problems"], max_new_tokens=settings["max_new_tokens"], chat=completer.can_chat)
    return int(run_task(humaneval(), completer, out, options)["passed"])


def _identity(path: Path) -> str:
    """What a file or folder of a model or text is: names and sizes, and the SHA-256 of its small files."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    parts = []
    for file in files:
        size = file.stat().st_size
        parts.append(f"{file.name}:{size}:{sha256_file(file)[:16] if size < 1 << 20 else ''}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def conclusion(rows: Sequence[Row]) -> str:
    """What may be said, in words."""
    lines = []
    for row in rows:
        if row.method == "bf16":
            continue
        words = f"{row.model}, {row.method}: {row.change:+.2%} bits per byte [{row.low:+.2%}, {row.high:+.2%}]"
        lines.append(words + (f", HumanEval {row.passed}/{row.problems}" if row.problems else ""))
    if any(0 < row.problems < 164 for row in rows):
        problems = max(row.problems for row in rows)
        lines.append(f"pass@1 is of the first {problems} of 164 problems: too few to tell methods apart.")
    return "\n".join(lines)
