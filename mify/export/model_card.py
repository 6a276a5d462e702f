"""The README.md of an exported folder: what the model is, what it was trained on, what was measured.

Nothing is said that no file says: figures come from a curation's report.json, an evaluation's evaluation.json and the
conversations themselves, and where there is none the card says "not stated" or "not measured".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mify.config import ModelConfig
from mify.errors import MifyError
from mify.export.safety_card import safety_section
from mify.export.weights import Weights
from mify.files import read_json

_STORED = {
    "fp8": "FP8 (E4M3): weights with a scale per output channel, activations per token at run time; "
    "embedding, output matrix and norms in {dtype}.",
    "int8": "INT8: weights with a scale per output channel, activations per token at run time; "
    "embedding, output matrix and norms in {dtype}.",
    "fp8-block": "FP8 (E4M3): weights with a scale for each 128x128 block, activations by 128 features at run time; "
    "embedding, output matrix and norms in {dtype}.",
    "fp8-weight": "FP8 (E4M3): weights with a scale per output channel, activations in {dtype}; "
    "embedding, output matrix and norms in {dtype}.",
    "int8-weight": "INT8: weights with a scale per output channel, activations in {dtype}; "
    "embedding, output matrix and norms in {dtype}.",
    "int8-group": "INT8: weights in groups of {group} columns with a scale each, activations in {dtype}; "
    "embedding, output matrix and norms in {dtype}.",
    "int4": "INT4: weights in groups of {group} columns with a scale each, activations in {dtype}; "
    "embedding, output matrix and norms in {dtype}.",
    "modelopt": "FP8 (E4M3): weights and activations with one static scale a layer (ModelOpt's layout); "
    "embedding, output matrix and norms in {dtype}.",
}


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What the weights themselves do not tell.

    Args:
        license: SPDX identifier of the weights' license; None where not decided.
        corpus: report.json of the curation, parsed. evaluation: evaluation.json, parsed.
        conversations: what those that it was tuned on hold of safety (`mify.post.safety.conversations_report`).
    """

    license: str | None = None
    corpus: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    conversations: dict[str, Any] | None = None

    @classmethod
    def read(
        cls,
        license: str | None = None,
        corpus: str | os.PathLike[str] | None = None,
        evaluation: str | os.PathLike[str] | None = None,
        conversations: Sequence[str | os.PathLike[str]] = (),
    ) -> CardFacts:
        """Reads the files (or the folders they lie in); one of another format or version raises `MifyError`."""
        from mify.post.safety import conversations_report

        return cls(
            license,
            _read(corpus, "report.json", ("curation-report", "1")) if corpus else None,
            _read(evaluation, "evaluation.json", ("evaluations", 1)) if evaluation else None,
            conversations_report(conversations) if conversations else None,
        )


def model_card(
    weights: Weights, facts: CardFacts | None = None, *, dtype: str, kind: str | None = None, group_size: int = 0
) -> str:
    """The README.md of a folder.

    Args:
        dtype: of the stored weights ("bfloat16"), or of what is not quantized.
        kind: of `mify.quantization.scheme`, "modelopt", or None where nothing is quantized. group_size: of groups.
    """
    facts = facts or CardFacts()
    config, tokenizer = weights.config, weights.tokenizer
    fim = tokenizer is not None and None not in (
        tokenizer.fim_prefix_id, tokenizer.fim_middle_id, tokenizer.fim_suffix_id,
    )  # fmt: skip
    stored = _STORED[kind].format(dtype=dtype, group=group_size) if kind else f"All tensors in {dtype}."
    tags = ["code", *(["fill-in-the-middle"] if fim else []), *([kind] if kind else [])]
    parts = [
        _front_matter(facts.license, tags),
        f"# {config.name}\n",
        f"A decoder of {_count(config.num_parameters())} parameters in the form of Llama, exported by mify. {stored}\n",
        _shape(config),
        _use(fim, tokenizer is not None),
        _training(facts.corpus),
        _evaluation(facts.evaluation, quantized=kind is not None),
        safety_section(facts.conversations, facts.evaluation),
        f"## License\n\n{facts.license or 'Not stated.'}\n",
    ]
    return "\n".join(parts)


def _front_matter(license: str | None, tags: list[str]) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    lines += [f"license: {license.lower()}"] if license else []
    lines += ["tags:", *(f"- {tag}" for tag in tags), "---"]
    return "\n".join(lines) + "\n"


def _shape(config: ModelConfig) -> str:
    rows = {
        "parameters": f"{config.num_parameters():,} ({config.num_non_embedding_parameters():,} without embeddings)",
        "layers": config.num_layers,
        "hidden size": config.hidden_size,
        "heads (query / key-value)": f"{config.num_query_heads} / {config.num_kv_heads}, {config.head_dim} wide",
        "feed-forward": f"{config.ffn_size}, SwiGLU",
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{config.context:,} tokens, RoPE θ {config.rope_theta:g}",
        "embeddings": "tied" if config.tie_embeddings else "untied",
    }
    return "## Shape\n\n" + _table(["", ""], [[name, str(value)] for name, value in rows.items()])


def _use(fim: bool, tokenizer: bool) -> str:
    if not tokenizer:
        return "## Use\n\nThe folder has no tokenizer: the weights alone.\n"
    text = [
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        'inputs = tokenizer("def fibonacci(n):", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))",
        "```",
        "",
    ]
    if fim:
        text += [
            "To fill in the middle, the prompt is prefix, suffix, then the middle is generated:",
            "",
            "```python",
            'prompt = "<|fim_prefix|>def add(a, b):\\n    return <|fim_suffix|>\\n<|fim_middle|>"',
            "```",
            "",
        ]
    return "\n".join(text)


def _training(corpus: dict[str, Any] | None) -> str:
    if corpus is None:
        return "## Training data\n\nNot stated.\n"
    train = corpus["train"]
    total = max(1, train["bytes"])

    def rows(key: str) -> list[list[str]]:
        found = sorted(train[key].items(), key=lambda item: (-item[1]["bytes"], item[0]))
        return [
            [name, f"{row['documents']:,}", f"{row['bytes'] / 1e6:,.1f} MB", f"{row['bytes'] / total:.1%}"]
            for name, row in found
        ]

    benchmarks = (corpus.get("decontamination") or {}).get("benchmarks") or {}
    checked = ", ".join(sorted(benchmarks)) or "none"
    return "\n".join(
        [
            "## Training data",
            "",
            f"{train['documents']:,} documents, {total / 1e6:,.1f} MB, after curation "
            f"({corpus['totals']['rejected']['documents']:,} documents rejected). "
            f"Decontaminated against: {checked}.",
            "",
            _table(["domain", "documents", "size", "share"], rows("domains")),
            _table(["license", "documents", "size", "share"], rows("licenses")),
            f"Mixture: {corpus['mixture']['statement']}.",
            "",
        ]
    )


def _evaluation(evaluation: dict[str, Any] | None, *, quantized: bool) -> str:
    if evaluation is None:
        return "## Evaluation\n\nNot measured.\n"
    rows: list[list[str]] = []
    for result in evaluation["results"]:
        if result["task"] == "bits_per_byte":
            for domain, row in [*result["domains"].items(), ("all", result["all"])]:
                rows.append([f"held-out bits per byte, {domain}", f"{row['model']:.3f}", "", ""])
            continue
        for metric, score in result["scores"].items():
            on = f"{result['items']} of {result['of_items']} items"
            if (seen := result.get("contamination")) is not None:
                on += f"; {seen['contaminated']} of them stand in the training data"
            interval = f"{score['low']:.1%} to {score['high']:.1%}"
            rows.append([f"{result['task']} {metric}", f"{score['value']:.1%}", interval, on])
    named = {
        str(result["model"].get("name")) for result in evaluation["results"] if isinstance(result.get("model"), dict)
    }
    about = f"Measured by mify on {', '.join(sorted(named))}." if named else "Measured by mify."
    if quantized:
        about += " The figures are those of the model before quantization unless that name says otherwise."
    return f"## Evaluation\n\n{about}\n\n" + _table(["task", "score", "95% interval", "on"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _count(parameters: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)


def _read(path: str | os.PathLike[str], name: str, expected: tuple[str, Any]) -> dict[str, Any]:
    file = Path(path) / name if Path(path).is_dir() else Path(path)
    value = read_json(file)
    found = (value.get("format"), value.get("version")) if isinstance(value, dict) else (None, None)
    if found != expected:
        raise MifyError(
            f"{file} is no {expected[0]} of version {expected[1]} (found {found[0]}, {found[1]})",
            "give the file that `mify curate` or `mify eval` wrote",
        )
    return dict(value)
