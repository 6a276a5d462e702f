"""The configuration of a curation: one tree of frozen dataclasses, read from TOML with errors that name the key."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mify.curation.licenses import LicensePolicy
from mify.curation.personal_data import PersonalDataRules
from mify.curation.quality import QualityRules
from mify.curation.syntax import SyntaxRules
from mify.curation.toxicity import ToxicityRules
from mify.errors import MifyError
from mify.typed_tree import build, to_plain


@dataclass(frozen=True)
class LanguageRules:
    """Which languages are taken.

    Args:
        allow: names as in `mify.curation.languages`; empty: all that are known.
        by_content: whether the content is asked where neither name nor first line tells (`language_guess`).
        unknown: whether a document whose language nothing tells is rejected or accepted.
    """

    allow: tuple[str, ...] = ()
    by_content: bool = True
    unknown: Literal["reject", "accept"] = "reject"


@dataclass(frozen=True)
class NearDuplicateRules:
    """Near-duplicates by MinHash LSH with exact verification (`mify.curation.minhash`).

    Args:
        enabled: whether they are looked for.
        jaccard_threshold: documents at or above it are near-duplicates.
        num_perm: permutations of the signature.
        ngram: words of a shingle.
        seed: of the permutations.
        verify: whether candidate pairs are checked exactly; without it, documents below the threshold fall too.
    """

    enabled: bool = True
    jaccard_threshold: float = 0.7
    num_perm: int = 128
    ngram: int = 5
    seed: int = 1
    verify: bool = True


@dataclass(frozen=True)
class DecontaminationRules:
    """What must not be trained on.

    Args:
        benchmarks: names ("humaneval") or .jsonl(.gz) files of benchmarks; empty: none.
        ngram: words of an n-gram that counts as an overlap.
    """

    benchmarks: tuple[str, ...] = ("humaneval",)
    ngram: int = 10


@dataclass(frozen=True)
class MixtureRules:
    """Parts of the domains in what is trained on; only their ratio counts."""

    code: float = 78.0
    text: float = 12.0
    math: float = 10.0


@dataclass(frozen=True)
class GuardRules:
    """When the run stops instead of writing a corpus that lost a source unseen.

    Args:
        max_source_loss: largest share of a source's documents that may be rejected.
        min_documents: smaller sources are not guarded: chance alone may take most of them.
    """

    max_source_loss: float = 0.9
    min_documents: int = 20


@dataclass(frozen=True)
class CurationConfig:
    """All rules, in the order of the stages."""

    license: LicensePolicy = field(default_factory=LicensePolicy)
    language: LanguageRules = field(default_factory=LanguageRules)
    reject_generated: bool = True
    quality: QualityRules = field(default_factory=QualityRules)
    syntax: SyntaxRules = field(default_factory=SyntaxRules)
    personal_data: PersonalDataRules = field(default_factory=PersonalDataRules)
    toxicity: ToxicityRules = field(default_factory=ToxicityRules)
    decontamination: DecontaminationRules = field(default_factory=DecontaminationRules)
    near_duplicates: NearDuplicateRules = field(default_factory=NearDuplicateRules)
    mixture: MixtureRules = field(default_factory=MixtureRules)
    guard: GuardRules = field(default_factory=GuardRules)


def check_ranges(config: CurationConfig) -> None:
    """Raises `MifyError` for a value that no run can mean, naming the key."""
    near, mixture, guard, syntax = config.near_duplicates, config.mixture, config.guard, config.syntax
    for name, value, fits, wanted in (
        (
            "near_duplicates.jaccard_threshold",
            near.jaccard_threshold,
            0 < near.jaccard_threshold <= 1,
            "above 0, up to 1",
        ),
        ("syntax.max_error_fraction", syntax.max_error_fraction, 0 <= syntax.max_error_fraction <= 1, "from 0 to 1"),
        ("toxicity.threshold", config.toxicity.threshold, 0 < config.toxicity.threshold <= 1, "above 0, up to 1"),
        ("near_duplicates.num_perm", near.num_perm, 2 <= near.num_perm <= 4096, "from 2 to 4096"),
        ("near_duplicates.ngram", near.ngram, near.ngram >= 1, "at least 1"),
        ("decontamination.ngram", config.decontamination.ngram, config.decontamination.ngram >= 1, "at least 1"),
        ("guard.max_source_loss", guard.max_source_loss, 0 < guard.max_source_loss <= 1, "above 0, up to 1"),
        ("mixture", mixture, min(mixture.code, mixture.text, mixture.math) >= 0, "parts of 0 or more"),
        ("mixture", mixture, mixture.code + mixture.text + mixture.math > 0, "at least one part above 0"),
    ):
        if not fits:
            raise MifyError(f"{name} = {value} is out of range", f"give a value {wanted}")


def load_config(path: Path) -> CurationConfig:
    """Reads a TOML file, e.g. `[near_duplicates]` with `jaccard_threshold = 0.8`; absent keys keep their defaults.

    Raises:
        MifyError: no such file, no TOML, an unknown key (the nearest is named) or a value of another type.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MifyError(f"{path} cannot be read ({error.strerror})", "check the path given with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MifyError(f"{path} is not valid TOML ({error})", "mend the line it names") from None
    try:
        return build(CurationConfig, values)
    except MifyError as error:
        raise MifyError(f"{path}: {error.problem}", error.remedy) from None


def config_to_toml(config: CurationConfig) -> str:
    """The configuration as a TOML file that `load_config` reads back to an equal one."""
    return "\n".join(_toml(to_plain(config), "")) + "\n"


def _toml(table: Mapping[str, Any], name: str) -> list[str]:
    # JSON's spelling of strings, numbers, booleans and lists of strings is TOML's as well.
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    if name and lines:
        lines = ["", f"[{name}]", *lines]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _toml(value, f"{name}.{key}" if name else key)
    return lines
