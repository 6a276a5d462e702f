"""The curation suite: its corpus is pinned, its exact star is exact, and a small case runs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mify.bench import bench_curation
from mify.bench.curation_corpus import Corpus, build, exact_star
from mify.bench.suite import Options, Targets
from mify.curation.minhash import near_duplicates
from mify.errors import MifyError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    random_ = random.Random(1)
    names = [f"name_{i}" for i in range(200)]
    for i in range(40):
        lines = [" ".join(random_.choices(names, k=6)) for _ in range(40)]
        (folder / f"file{i}.py").write_text("\n".join(lines))
    return folder


def test_the_corpus_is_the_same_for_the_same_files_and_seed(folder: Path) -> None:
    first, again, other = build(30, 1, folder), build(30, 1, folder), build(30, 2, folder)
    assert first.texts == again.texts
    assert first.sha256 == again.sha256 != other.sha256
    assert len(first.texts) == 30 + 12 + 3
    with pytest.raises(MifyError, match="too few text files"):
        build(30, 1, folder / "none")


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_prefix_filtering_loses_nothing(folder: Path, threshold: float) -> None:
    corpus = build(30, 3, folder)
    # Every pair compared: one band a permutation finds any pair that is at all similar.
    found = near_duplicates(corpus.ids, corpus.texts, jaccard_threshold=threshold, num_perm=256, bands=(256, 1))
    assert {index: (kept, similarity) for index, kept, similarity in found.removed} == exact_star(corpus, threshold)
    assert found.removed


def test_samples_are_ascii_where_asked_for() -> None:
    corpus = Corpus(["é one", "two", "three", "four"])
    assert corpus.sample(100, ascii_only=True).texts == ["two", "three", "four"]
    assert corpus.sample(4).texts == ["é one"]


def test_cases_have_a_measurement_and_targets_name_cases(folder: Path) -> None:
    assert bench_curation.CASES.keys() == bench_curation._CASES.keys()
    targets = Targets.load("cpu")
    options = Options(
        suite="curation", quick=True, rounds=1, cases=("kernel-one-permutation-128", "near-dedup-files"),
        data=folder, targets=targets,
    )  # fmt: skip
    rows = {row.case: row for row in bench_curation.run(options)}
    assert rows["kernel-one-permutation-128"].value is not None
    assert rows["kernel-one-permutation-128"].target == "value <= 2"
    assert rows["near-dedup-files"].status == "not measured"
