"""The study of quantized weights: FP8 against AWQ and int8, by size, speed, held-out bits per byte and pass@1.

Every method quantizes the same model with the same calibration text and is measured on the same documents, so the
difference in code length is paired document by document, with a bootstrap interval (`ablate.compare`), and that in
pass@1 problem by problem. What engines also round at run time, activations, is rounded here too. Finished rows are kept
and not measured again.

A greedy answer is one path, which flips at the first near-tie: on 164 problems that alone is worth a point or two. So
beside pass@1 stands the code length of the published solutions, given what the model is asked: it says of the same
problems how much less likely the right answer became.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mify.errors import MifyError
from mify.eval.statistics import Paired, paired_difference
from mify.files import read_json, sha256_file, write_json
from mify.hardware import gpu_spec
from mify.kernels import cost

from .ablate import compare
from .evaluate import HeldOut, evaluating, one_document

if TYPE_CHECKING:
    from mify.config import ModelConfig
    from mify.eval.tasks import Item
    from mify.model import Model

METHODS = ("fp8", "fp8-weight", "fp8-block", "awq8", "int8", "awq4")
FORMAT, VERSION = "mify-quantization-study", 2
TEMPERATURE = 0.2
"""Of several samples: what Chen et al. (arXiv 2107.03374) found best for pass@1."""
# Bytes a weight of a linear layer, scales included (bf16 scales; groups of 128).
_WEIGHT_BYTES = {
    "bf16": 2.0,
    "fp8": 1.0,
    "fp8-weight": 1.0,
    "fp8-block": 1.0,
    "int8": 1.0,
    "awq8": 1 + 2 / 128,
    "awq4": 0.5 + 2 / 128,
}
SPEED_ON = "H100"


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one model.

    Args:
        megabytes: of the stored tensors. seconds: quantizing took.
        decode_speedup: predicted, batch 1 on an H100 by bytes: times as many tokens a second as bf16. Not measured.
        bits_per_byte: over all held-out documents. change: its relative change, with a 95% interval.
        problems: of HumanEval; 0 where it was not run. samples: answers a problem, 1 of them greedy.
        pass_at_1: the share of answers that pass. passes: against bf16, problem by problem.
        solution_bits: a byte of the published solutions. solution_change: relative, with a 95% interval.
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
    problems: int
    samples: int
    pass_at_1: float
    passes: Paired | None
    solution_bits: float
    solution_change: float
    solution_low: float
    solution_high: float


def run_quant_study(
    models: Sequence[Path],
    held_out: HeldOut,
    calibration: Path,
    out: Path,
    *,
    methods: Sequence[str] = METHODS,
    calibration_tokens: int = 16_384,
    problems: int = 10,
    samples: int = 1,
    max_new_tokens: int = 256,
    say: Callable[[str], None],
) -> list[Row]:
    """Measures every method on every model; writes out/quantization.json.

    Args:
        calibration: see `calibration_sequences`. problems: of HumanEval, the first so many; 0 leaves pass@1 out.
        samples: answers a problem: 1 is the greedy one, more are drawn at a temperature of 0.2, for every method by
            the same numbers.

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
            "problems": problems, "samples": samples, "max_new_tokens": max_new_tokens, "model": _identity(model),
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
    measured_so = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    for method in ("bf16", *methods):
        stored = out / f"{method}-{measured_so}.json"
        found = read_json(stored) if stored.is_file() else {}
        if not found:
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
                solutions, passed = _humaneval(model, out / f"{method}-{measured_so}", settings)
            found = {
                "settings": settings, "bytes": report["bytes"], "seconds": report["seconds"], "bits": bits,
                "solutions": solutions, "passed": passed,
            }  # fmt: skip
            write_json(stored, found)
        if method == "bf16":
            base = found
        rows.append(_row(config, out.name, method, base, found))
    return rows


def _row(config: ModelConfig, model: str, method: str, base: dict[str, Any], found: dict[str, Any]) -> Row:
    def together(bits: dict[str, Any]) -> dict[str, list[tuple[str, int, float]]]:
        return {"all": [tuple(row) for rows in bits.values() for row in rows]}

    difference = compare("all", method, [together(base["bits"])], [together(found["bits"])])
    before = difference.baseline_value
    spec = gpu_spec(SPEED_ON)

    def seconds(weight_bytes: float) -> float:
        step = cost.decode_step(config, 1, 128, weight_element=1)
        linear = cost.parameters(config).attention + cost.parameters(config).ffn
        return (step.bytes + linear * (weight_bytes - 1)) / spec.reached_bandwidth

    settings = found["settings"]
    problems, samples = settings["problems"], settings["samples"]
    row = Row(
        model, method, found["bytes"] / 1e6, found["seconds"],
        seconds(_WEIGHT_BYTES["bf16"]) / seconds(_WEIGHT_BYTES[method]), difference.value,
        difference.mean / before, difference.low / before, difference.high / before, problems, samples,
        0.0, None, 0.0, 0.0, 0.0, 0.0,
    )  # fmt: skip
    if not problems:
        return row
    shares = [[run["passed"][name] / samples for name in base["passed"]] for run in (base, found)]
    solved = compare("solutions", method, [base], [found])
    before = solved.baseline_value
    return replace(
        row, pass_at_1=sum(shares[1]) / problems,
        passes=None if found is base else paired_difference(*shares), solution_bits=solved.value,
        solution_change=solved.mean / before, solution_low=solved.low / before, solution_high=solved.high / before,
    )  # fmt: skip


def _humaneval(
    model: Model, out: Path, settings: dict[str, Any]
) -> tuple[list[tuple[str, int, float]], dict[str, int]]:
    """(id, bytes, bits) of each published solution, and {id: answers that pass}."""
    from mify.eval.completers import MifyCompleter
    from mify.eval.humaneval import humaneval
    from mify.eval.records import read_records
    from mify.eval.runner import RunOptions, run_task

    if not settings["problems"]:
        return [], {}
    task = humaneval()
    completer = MifyCompleter(model, out.name, {"name": out.name, **settings})
    samples = settings["samples"]
    options = RunOptions(
        samples=samples, temperature=TEMPERATURE if samples > 1 else 0.0, limit=settings["problems"],
        max_new_tokens=settings["max_new_tokens"], chat=completer.can_chat,
    )  # fmt: skip
    run_task(task, completer, out, options)
    passed = {item.id: 0 for item in task.items[: settings["problems"]]}
    for record in read_records(out / "humaneval.verdicts.jsonl", "verdicts"):
        passed[record["id"]] += record["status"] == "passed"
    with evaluating(model), torch.inference_mode():
        return [_solution_bits(model, item) for item in task.items[: settings["problems"]]], passed


def _solution_bits(model: Model, item: Item) -> tuple[str, int, float]:
    """(id, bytes, bits) of a problem's published solution behind what the model is asked, in its chat form if it has
    one: then the answer's code block is begun, and repeats the problem."""
    from mify.chat import chat_ids
    from mify.eval.humaneval import chat_message
    from mify.export.weights import conventions_of

    tokenizer, template = model.require_tokenizer(), conventions_of(model).chat_template
    problem, solution = item.fields["prompt"], item.fields["canonical_solution"]
    asked = tokenizer.encode(problem)
    if template is not None:
        message = {"role": "user", "content": chat_message(item)}
        asked = [*chat_ids(tokenizer, template, [message]), *tokenizer.encode(f"```python\n{problem}")]
    ids = [*asked, *tokenizer.encode(solution)]
    cut = max(0, len(ids) - model.config.context)
    batch = one_document(ids[cut:], first_label=max(1, len(asked) - cut), context=model.config.context)
    loss, _ = model.loss(batch.to(model.head_weight.device))
    return item.id, len(solution.encode()), float(loss) / math.log(2)


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
        if row.passes is not None:
            words += (
                f"; HumanEval {100 * row.passes.mean:+.1f} points [{100 * row.passes.low:+.1f}, "
                f"{100 * row.passes.high:+.1f}], {row.passes.won} problems won, {row.passes.lost} lost "
                f"(p = {row.passes.p:.2f}); published solutions {row.solution_change:+.2%} bits "
                f"[{row.solution_low:+.2%}, {row.solution_high:+.2%}]"
            )
        lines.append(words)
    if any(0 < row.problems < 164 for row in rows):
        problems = max(row.problems for row in rows)
        lines.append(f"pass@1 is of the first {problems} of 164 problems: too few to tell methods apart.")
    return "\n".join(lines)
