"""`mify export MODEL`: files that engines load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mify.cli.paths import not_the_source
from mify.errors import MifyError

if TYPE_CHECKING:
    import torch

    from mify.export.model_card import CardFacts
    from mify.export.weights import Weights

CALIBRATED = ("awq", "trtllm")
TARGETS = ("hf", "gguf", "fp8", "int8", "int4", "adapter", *CALIBRATED)


def export(
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder, a GGUF file, a run folder or a checkpoint.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="hf: a Hugging Face folder. fp8, int8, int4: the same, quantized, for vLLM and SGLang. "
            "awq: int4 that heeds activations. trtllm: ModelOpt's FP8, for TensorRT-LLM. "
            "gguf: a file for llama.cpp and Ollama. adapter: of a LoRA run, alone, in peft's format.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder (gguf: file) to write.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="hf: f32, bf16, f16 (default: as it is). gguf: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, … "
            "(default: f16). Others: of what is not quantized (default: bf16).",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", help="awq, trtllm: text of the kind the model is for; a file, folder or documents.parquet."
        ),
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="Of the weights, for the model card: an SPDX identifier.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="For the model card: what `mify curate` wrote (report.json).")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="For the model card: what `mify eval` wrote (evaluation.json).")
    ] = None,
    conversations: Annotated[
        list[Path] | None,
        typer.Option("--conversations", help="For the model card: what it was tuned on (.jsonl), again for each file."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="gguf: load it with llama.cpp and say if it runs.")] = False,
) -> None:
    """Write a model as other engines load it. What is written appears whole or not at all.

    Tensors are streamed, so memory does not grow with the model; to run it on calibration text awq holds a layer, and
    trtllm the model.
    """
    if to not in TARGETS:
        raise MifyError(f"--to {to} is not known", f"give {', '.join(TARGETS)}")
    if to != "gguf" and check:
        raise MifyError(f"--check does not go with --to {to}", "leave it out; llama.cpp reads only gguf")
    if (to in CALIBRATED) != (calibration is not None):
        problem = "needs" if to in CALIBRATED else "does not take"
        raise MifyError(f"--to {to} {problem} --calibration", f"{', '.join(CALIBRATED)} take it, the others do not")
    from mify.export.hf import DTYPES
    from mify.export.model_card import CardFacts
    from mify.loading import open_weights

    facts = CardFacts.read(license_, corpus, evaluation, conversations or ())
    if to == "gguf" and facts != CardFacts():
        raise MifyError("a GGUF file has no model card", "leave out --license, --corpus, --evaluation, --conversations")
    if to != "gguf" and dtype is not None and dtype not in DTYPES:
        raise MifyError(f"--dtype {dtype} is no dtype of a Hugging Face folder", f"give {', '.join(DTYPES)}")
    not_the_source(out, model)
    weights = open_weights(model)
    if to == "adapter":
        _adapter(weights, out)
        return
    if to == "gguf":
        _gguf(weights, out, dtype or "f16", check)
    elif to == "hf":
        from mify.export.hf import export_hf

        export_hf(weights, out, dtype=DTYPES[dtype] if dtype else None, facts=facts)
    elif calibration is None:
        from mify.export.quantized import export_quantized

        export_quantized(weights, out, to, dtype=DTYPES[dtype or "bf16"], facts=facts)
    else:
        _calibrated(weights, out, to, calibration, DTYPES[dtype or "bf16"], facts)
    size = sum(file.stat().st_size for file in out.iterdir()) if out.is_dir() else out.stat().st_size
    typer.echo(f"{out}: {weights.config.num_parameters() / 1e6:.1f} M parameters, {size / 1e6:.1f} MB")


def _adapter(weights: Weights, out: Path) -> None:
    from mify.loading import CheckpointWeights

    if not isinstance(weights, CheckpointWeights):
        raise MifyError(f"{weights.source} is no run of the trainer, so it has no adapter apart", "use --to hf")
    adapter = weights.adapter()
    adapter.save(out)
    size = sum(a.numel() + b.numel() for a, b, _ in adapter.layers.values())
    typer.echo(
        f"{out}: {size / 1e6:.2f} M parameters, rank {adapter.config.rank}, of {adapter.base or 'a random start'}"
    )


def _gguf(weights: Weights, out: Path, dtype: str, check: bool) -> None:
    from mify.export.gguf import export_gguf

    for note in export_gguf(weights, out, dtype):
        typer.echo(f"note: {note}")
    if check:
        from mify.export.llama_cpp import LlamaCpp

        with LlamaCpp(out) as server:
            server.greedy([0], 1)
        typer.echo("llama.cpp loads and runs it")


def _calibrated(weights: Weights, out: Path, to: str, calibration: Path, dtype: torch.dtype, facts: CardFacts) -> None:
    import torch

    from mify.export.calibration import calibration_sequences
    from mify.export.modelopt import export_modelopt
    from mify.export.quantized import export_quantized, scheme_of
    from mify.export.weights import to_model
    from mify.quantization.awq import AwqWeights

    if weights.tokenizer is None:
        raise MifyError(f"{weights.source} has no tokenizer to read the calibration text with", "add tokenizer.json")
    sequences = calibration_sequences(calibration, weights.tokenizer, context=weights.config.context)
    if to == "trtllm":
        loaded = to_model(weights, device="cuda" if torch.cuda.is_available() else "cpu")
        export_modelopt(loaded, out, sequences, dtype=dtype, facts=facts)
    else:
        scaled = AwqWeights(weights, sequences, scheme_of("int4", weights.config))
        export_quantized(scaled, out, "int4", dtype=dtype, facts=facts)
    typer.echo(f"calibrated on {sum(len(sequence) for sequence in sequences)} tokens of {calibration}")
