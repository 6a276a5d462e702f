"""The configuration: TOML in and out, unknown keys and wrong values named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mify.curation.config import (
    CurationConfig,
    GuardRules,
    MixtureRules,
    NearDuplicateRules,
    check_ranges,
    config_to_toml,
    load_config,
)
from mify.curation.quality import QualityRules, StarCoder2Rules
from mify.errors import MifyError
from mify.typed_tree import build, to_plain


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_absent_keys_keep_their_defaults(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", "[near_duplicates]\njaccard_threshold = 0.85\n[license]\ndeny = ['MIT']\n")
    config = load_config(path)
    assert config.near_duplicates == NearDuplicateRules(jaccard_threshold=0.85)
    assert config.license.deny == ("MIT",)
    assert replace(config, near_duplicates=NearDuplicateRules(), license=CurationConfig().license) == CurationConfig()


def test_toml_and_dicts_come_back_equal(tmp_path: Path) -> None:
    config = CurationConfig(quality=QualityRules(StarCoder2Rules(max_lines=7)), mixture=MixtureRules(code=1.5))
    assert load_config(write(tmp_path / "c.toml", config_to_toml(config))) == config
    assert build(CurationConfig, to_plain(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[near_duplicate]\n", "unknown key near_duplicate\n  -> did you mean near_duplicates?"),
        ("[quality.starcoder2]\nmax_line = 3\n", "unknown key quality.*max_line\n  -> did you mean .*max_lines?"),
        ("zzz = 1\n", "c.toml: unknown key zzz\n  -> known here: decontamination, "),
        ("license = 3\n", "license = 3 is not a table of keys"),
        ("[license]\nunknown = 'maybe'\n", "unknown = 'maybe' is not known\n  -> choose from reject, accept"),
        ("[license]\nallow = 'MIT'\n", "allow = 'MIT' is not a list"),
        ("[near_duplicates]\nngram = 'five'\n", "near_duplicates.ngram = 'five' is not a whole number"),
        ("[near_duplicates]\nngram = true\n", "ngram = True is not a whole number"),
        ("[near_duplicates\n", "is not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(MifyError, match=message):
        load_config(write(tmp_path / "c.toml", text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MifyError, match=r"absent\.toml cannot be read"):
        load_config(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (CurationConfig(near_duplicates=NearDuplicateRules(jaccard_threshold=0.0)), "jaccard_threshold"),
        (CurationConfig(near_duplicates=NearDuplicateRules(num_perm=1)), "num_perm"),
        (CurationConfig(near_duplicates=NearDuplicateRules(ngram=0)), "ngram"),
        (CurationConfig(mixture=MixtureRules(code=-1)), "mixture"),
        (CurationConfig(mixture=MixtureRules(0, 0, 0)), "mixture"),
        (CurationConfig(guard=GuardRules(max_source_loss=1.5)), "max_source_loss"),
    ],
)
def test_values_out_of_range_are_named(config: CurationConfig, name: str) -> None:
    check_ranges(CurationConfig())
    with pytest.raises(MifyError, match=name):
        check_ranges(config)
