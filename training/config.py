"""What a run is: one tree of frozen dataclasses, filled from a TOML recipe and `--key.sub=value` overrides.

A recipe may name another that it `extends`; keys laid later win; `"none"` stands for nothing. The resolved tree is
printed, saved as `config.json` in the run folder and hashed: two runs with one hash do the same arithmetic.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mify.config import Fp8Settings
from mify.errors import MifyError
from mify.typed_tree import build, canonical_json, flatten, merge, parse_overrides, to_plain, unknown_key

from .preference_config import DpoSection, GrpoSection

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class ModelSection:
    """The model: a preset of `mify.config.PRESETS`, and what of it is changed."""

    preset: str = "mify-tiny"
    vocab_size: int | None = None  # None: the preset's
    num_layers: int | None = None
    hidden_size: int | None = None
    num_query_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    ffn_size: int | None = None
    rope_theta: float | None = None


@dataclass(frozen=True)
class InitSection:
    """Where the run starts: at random weights, at imported weights, or at another run's whole state."""

    weights: str | None = None  # Hugging Face folder, GGUF file or checkpoint: weights only, the shape comes from it
    state: str | None = None  # a checkpoint folder: weights, optimizer, stream and ledger (a decay branch of WSD)


@dataclass(frozen=True)
class SourceSection:
    """What is read, and how much of it.

    cpt: a folder of token shards, and its share of the trained tokens relative to the other sources' weights.
    sft: .jsonl conversations, and how often each is seen in an epoch; or, by `parts`, how many of all there are of it:
    parts of 1 for safety and 4 for the rest are harmful to general 1:4, exactly.
    dpo, grpo: .jsonl pairs of answers or tasks, and how often each is seen in an epoch.
    """

    path: str
    weight: float = 1.0
    parts: int | None = None


@dataclass(frozen=True)
class FimSection:
    """Fill-in-the-middle: `rate` of the documents of `domains` are permuted, `spm_rate` of those in SPM order."""

    rate: float = 0.25
    spm_rate: float = 0.5
    domains: tuple[str, ...] = ("code",)
    span: Literal["uniform", "line", "syntax"] = "uniform"  # cuts at characters, at line starts, around syntax nodes


@dataclass(frozen=True)
class ConversationsSection:
    """sft: which conversations are trained on. What is left out is counted in the ledger."""

    too_long: Literal["drop", "truncate", "stop"] = "drop"  # truncate: behind the last answer that fits the context
    bad: Literal["stop", "drop"] = "stop"  # roles out of order, calls against their schema, empty answers, ids twice
    stages: tuple[int, ...] = ()  # conversations of each stage, growing; a stage's are among those of the next
    stage_epochs: int = 1  # epochs before the next stage; the last goes on
    safety: tuple[int, ...] = ()  # harmful to general in each stage, as [1, 4]: checked by categories, exact by count


@dataclass(frozen=True)
class DataSection:
    """What a step sees. Tokens per step = rows_per_step * context, over all ranks."""

    sources: dict[str, SourceSection] = field(default_factory=dict)
    tokenizer: str | None = None  # tokenizer.json or its folder; None: the one that lies with the first source
    context: int = 512  # tokens per row
    rows_per_step: int = 16  # over all ranks
    micro_rows: int | None = None  # rows per forward pass; None: all rows of the rank at once
    fim: FimSection = field(default_factory=FimSection)
    loss: Literal["all", "middle"] = "all"  # of FIM documents: every token, or the middle alone
    exhausted: Literal["repeat", "stop", "reweight"] = "repeat"  # what follows a source's last document
    conversations: ConversationsSection = field(default_factory=ConversationsSection)
    skip: tuple[str, ...] = ()  # ids of documents to blank, as metrics.jsonl names those of a step that was skipped


@dataclass(frozen=True)
class OptimizerSection:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101). No decay on embeddings and norms."""

    learning_rate: float = 1e-4  # the peak
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0  # of the global gradient
    z_loss: float = 0.0  # weight of mean(logsumexp(logits)^2) (PaLM, arXiv 2204.02311, section 5)


@dataclass(frozen=True)
class LoraSection:
    """Low-rank corrections in place of full fine-tuning; see `mify.lora`. Everything else is frozen."""

    rank: int | None = None  # None: all weights are trained
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    rank_stabilized: bool = False  # scale alpha / sqrt(rank) in place of alpha / rank
    adapter: str | None = None  # start from this adapter, in peft's format, of the same shape


@dataclass(frozen=True)
class ScheduleSection:
    """Learning rate over steps: linear warm-up, then `cosine` to the floor, or `wsd`: stable, then decay.

    WSD: warm-up, stable, decay (MiniCPM, arXiv 2404.06395); the decay's shape is 1 - sqrt(progress) (arXiv 2405.18392)
    or linear.
    """

    kind: Literal["cosine", "wsd", "constant"] = "wsd"
    warmup_steps: int = 0
    decay_steps: int | None = None  # wsd: the last steps of the run; None: a tenth of them
    decay_shape: Literal["sqrt", "linear"] = "sqrt"
    floor: float = 0.1  # final learning rate as a share of the peak


@dataclass(frozen=True)
class ParallelSection:
    """How the work lies on the machine. Nothing here changes what is computed, beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None  # CPU threads per rank; None: torch's choice. Sums depend on it: fix it to be exact
    shard: Literal["none", "fsdp", "hsdp"] = "fsdp"  # used where there is more than one rank
    hsdp_shards: int | None = None  # ranks in a sharding group; None: those of one machine
    # Of activations and products; weights and optimizer stay fp32. fp8: the linear layers' products in FP8, the rest
    # bf16. fp8-fp32: the rest fp32, to see what FP8 itself does, on any machine. See the section `fp8`.
    precision: Literal["fp32", "bf16", "fp8", "fp8-fp32"] = "fp32"
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    compile: bool = False  # torch.compile, layer by layer
    deterministic: bool = True  # torch.use_deterministic_algorithms
    fixed_order: bool = False  # reduce gradients in one order at every world size: the same bits on 1, 2, 4 ranks
    virtual_shards: int = 4  # what that order is over; world sizes that divide it give equal sums

    @property
    def bf16(self) -> bool:
        """Whether activations are bf16."""
        return self.precision in ("bf16", "fp8")

    @property
    def fp8(self) -> bool:
        """Whether linear layers compute in FP8."""
        return self.precision in ("fp8", "fp8-fp32")


@dataclass(frozen=True)
class CheckpointSection:
    """When state is saved and what is kept. At most the time since the last checkpoint can be lost."""

    every_steps: int = 100
    keep_last: int = 2
    keep_every_steps: int | None = None  # these are kept for ever
    asynchronous: bool = False
    verify: bool = True  # hash every file on load


@dataclass(frozen=True)
class EvaluationSection:
    """Held-out bits per byte per domain, in the loop."""

    every_steps: int | None = None  # None: only after the last step
    held_out: str | None = None  # documents as Parquet
    max_bytes_per_domain: int = 100_000
    infilling: int = 0  # single-line infilling items per evaluation (greedy exact match)


@dataclass(frozen=True)
class StabilitySection:
    """What is done about non-finite numbers and spikes."""

    max_skips: int = 3  # consecutive non-finite steps before the run goes back to the last checkpoint
    max_rollbacks: int = 3  # then it stops
    spike_factor: float = 6.0  # a loss above the running median by this many median absolute deviations is a spike
    spike_window: int = 64  # steps of history it needs
    spike_rollback: bool = False  # go back on a spike that lasts `max_skips` steps; otherwise spikes are only logged


@dataclass(frozen=True)
class LoggingSection:
    """What is written while it runs. `metrics.jsonl` always."""

    every_steps: int = 10
    tensorboard: bool = True
    wandb: str | None = None  # project name
    profile_steps: int = 0  # a torch trace of this many steps after the first ten


@dataclass(frozen=True)
class TrainConfig:
    """The whole run."""

    name: str
    steps: int
    seed: int = 0
    folder: str = "runs"  # the run lives in folder/name
    objective: Literal["cpt", "sft", "dpo", "grpo"] = "cpt"
    description: str = ""
    model: ModelSection = field(default_factory=ModelSection)
    init: InitSection = field(default_factory=InitSection)
    data: DataSection = field(default_factory=DataSection)
    lora: LoraSection = field(default_factory=LoraSection)
    dpo: DpoSection = field(default_factory=DpoSection)
    grpo: GrpoSection = field(default_factory=GrpoSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    fp8: Fp8Settings = field(default_factory=Fp8Settings)  # read where parallel.precision is fp8 or fp8-fp32
    stability: StabilitySection = field(default_factory=StabilitySection)
    logging: LoggingSection = field(default_factory=LoggingSection)

    def __post_init__(self) -> None:
        from .config_checks import check

        check(self)

    @property
    def run_folder(self) -> Path:
        return Path(self.folder) / self.name

    @property
    def tokens_per_step(self) -> int:
        return self.data.rows_per_step * self.data.context

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as `config.json` holds them."""
        return to_plain(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainConfig:
        return build(TrainConfig, values)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of everything that can change a number: names, folders and logging left out."""
        return hashlib.sha256(canonical_json(_arithmetic(self.to_dict())).encode()).hexdigest()


# What may change between a run and its continuation: none of it changes which numbers are computed, beyond the
# rounding of another world size. `steps` moves the end (and with it the start of a WSD decay).
FREE_TO_CHANGE = ("name", "folder", "description", "steps", "parallel", "checkpoint", "evaluation", "logging")


def _arithmetic(plain: dict[str, Any]) -> dict[str, Any]:
    left_out = ["name", "folder", "description", "logging"]
    left_out += [section for section in ("dpo", "grpo") if section != plain.get("objective")]
    if not plain.get("parallel", {}).get("precision", "").startswith("fp8"):
        left_out.append("fp8")
    return {key: value for key, value in plain.items() if key not in left_out}


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The dotted keys whose change forbids that a run with config `old` goes on with `new`."""
    before, after = flatten(_arithmetic(old)), flatten(_arithmetic(new))
    if not any(key.startswith("fp8.") for key in before) or not any(key.startswith("fp8.") for key in after):
        # One of them computes without FP8; that itself may change, as any precision may.
        before, after = ({k: v for k, v in keys.items() if not k.startswith("fp8.")} for keys in (before, after))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    free = (*FREE_TO_CHANGE, "data.micro_rows", "data.skip")
    return [key for key in keys if key not in free and key.split(".")[0] not in free]


def recipe_names() -> list[str]:
    """The recipes that come with mify."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


_SHORT = {"precision": "parallel"}  # --precision=fp8 is --parallel.precision=fp8


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A shipped recipe's name or a TOML file, with `--key.sub=value` overrides.

    Raises:
        MifyError: no such recipe, not TOML, an unknown key or a value of the wrong type.
    """
    values = _read(_locate(recipe, Path.cwd()), ())
    given = parse_overrides(overrides)
    for short, section in _SHORT.items():
        if short in given:
            given = merge({section: {short: given.pop(short)}}, given)
    return build(TrainConfig, merge(values, given))


def _locate(recipe: str | Path, beside: Path) -> Path:
    for candidate in (beside / recipe, RECIPES / f"{recipe}.toml"):
        if candidate.is_file():
            return candidate
    if str(recipe).endswith(".toml"):
        raise MifyError(f"the recipe {recipe} does not exist", "check the path")
    error = unknown_key(str(recipe), str(recipe), recipe_names(), "")
    raise MifyError(f"there is no recipe {recipe}", error.remedy)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise MifyError(f"the recipe {path} extends itself", f"break the circle {' -> '.join(p.name for p in seen)}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MifyError(f"{path} is not valid TOML ({error})", "mend the line it names") from None
    parent = values.pop("extends", "none")
    if parent == "none":
        return values
    return merge(_read(_locate(parent, path.parent), (*seen, path)), values)
