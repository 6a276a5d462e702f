"""The sharded curation: the star of plain Python, and the same bytes however the work is cut, stopped and resumed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import reference_minhash as reference
from sharded_corpus import OPEN, families, make, mixed

from mify.curation.config import NearDuplicateRules
from mify.curation.documents import Document, read_clusters, read_documents, read_rejected
from mify.curation.engines import LocalEngine, Outcome, Task
from mify.curation.outputs import OutputOptions
from mify.curation.pipeline import curate
from mify.curation.sharded import filtering, pairing, reading, records, signing, starring
from mify.curation.sharded import run as sharded_run
from mify.curation.sharded.run import ShardOptions
from mify.errors import MifyError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw shards of some 3 KB."""
    monkeypatch.setattr(reading, "_SMALLEST", 3000)


def test_the_removed_documents_are_those_of_the_greedy_star_over_all_pairs(tmp_path: Path) -> None:
    documents = families(60, 220, seed=1)
    held_out = [*families(10, 20, seed=2), make(documents[0].text, "held.txt")]
    curate(
        documents, tmp_path / "out", OPEN, held_out=held_out, shards=ShardOptions(partitions=3, entries_per_task=500)
    )
    everything = [*((document, "0") for document in held_out), *((document, "1") for document in documents)]
    # Exact duplicates go first: of equal texts the first in the order stays.
    first: dict[str, str] = {}
    for document, _ in sorted(everything, key=lambda pair: (pair[1], pair[0].id)):
        first.setdefault(document.text, document.id)
    left = [(document, side) for document, side in everything if first[document.text] == document.id]
    expected, clusters = reference.star([side + document.id for document, side in left], [d.text for d, _ in left], 0.7)
    near = {left[index][0].id: (left[kept][0].id, round(jaccard, 6)) for index, (kept, jaccard) in expected.items()}
    exact = {document.id: first[document.text] for document, _ in everything if first[document.text] != document.id}
    assert len(near) > 50
    assert len(exact) > 40
    found_near, found_exact = {}, {}
    for item in read_rejected(tmp_path / "out" / "rejected.parquet"):
        evidence = json.loads(item.evidence)
        if item.stage == "near duplicates":
            found_near[item.document.id] = (evidence["kept"], evidence["jaccard"])
        else:
            found_exact[item.document.id] = evidence["kept"]
    assert found_near == near
    grouped = {
        document.id: left[cluster][0].id
        for (document, _), cluster in zip(left, clusters, strict=True)
        if clusters.count(cluster) > 1
    }
    assert dict(read_clusters(tmp_path / "out" / "clusters.parquet")) == grouped
    assert found_exact == exact


@pytest.mark.usefixtures("small_shards")
def test_the_same_bytes_for_any_cut_and_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, held_out = mixed()
    curate(documents, tmp_path / "first", OPEN, held_out=held_out)
    first = contents(tmp_path / "first")
    parquet = [f"{name}.parquet" for name in ("clusters", "documents", "held_out", "rejected")]
    assert sorted(first) == [*parquet, "report.html", "report.json"]
    for workers, shards in (
        (1, ShardOptions(partitions=5, entries_per_task=100)),
        (3, ShardOptions(partitions=3, entries_per_task=1000)),
    ):
        curate(documents[::-1], tmp_path / "next", OPEN, held_out=held_out, num_workers=workers, shards=shards)
        assert contents(tmp_path / "next") == first, shards
    # Few pairs, small pieces, small batches at once.
    monkeypatch.setattr(reading, "_SMALLEST", 1 << 30)
    monkeypatch.setattr(pairing, "_PAIRS", 7)
    monkeypatch.setattr(starring, "_BLOCK", 11)
    monkeypatch.setattr(signing, "_CHUNK", 13)
    monkeypatch.setattr(records, "BATCH_BYTES", 900)
    monkeypatch.setattr(filtering, "_FLUSH_BYTES", (2000, 2000))
    curate(documents, tmp_path / "next", OPEN, held_out=held_out, shards=ShardOptions(partitions=2))
    assert contents(tmp_path / "next") == first


def test_without_verification_and_without_near_duplicates(tmp_path: Path) -> None:
    documents, held_out = mixed()
    for rules in (NearDuplicateRules(verify=False), NearDuplicateRules(enabled=False)):
        config = replace(OPEN, near_duplicates=rules)
        one = curate(documents, tmp_path / "one", config, held_out=held_out).data["near_duplicates"]
        curate(documents, tmp_path / "many", config, held_out=held_out, shards=ShardOptions(partitions=6))
        assert contents(tmp_path / "one") == contents(tmp_path / "many")
        assert one["enabled"] is rules.enabled
        if rules.enabled:
            assert one["verified"] is False
            assert one["verified_pairs"] == 0


class Stopped(BaseException):
    """A run that is killed."""


class StoppingEngine(LocalEngine):
    """Stops, unforeseen, after a number of tasks."""

    def __init__(self, tasks: int) -> None:
        super().__init__(1)
        self.left = tasks

    def run(self, tasks: Sequence[Task], done: Callable[[int], None]) -> list[Outcome]:
        outcomes = []
        for task in tasks:
            if self.left == 0:
                raise Stopped
            self.left -= 1
            outcomes += super().run([task], lambda _: None)
        return outcomes


@pytest.mark.usefixtures("small_shards")
def test_a_run_that_stopped_anywhere_goes_on_there(tmp_path: Path) -> None:
    documents, held_out = mixed()
    shards = ShardOptions(partitions=2)
    whole = curate(documents, tmp_path / "whole", OPEN, held_out=held_out, shards=shards)
    count = whole.tasks["all"]
    assert whole.tasks == {"all": count, "resumed": 0, "lost_workers": 0}
    for tasks in (1, count // 3, count - 3):
        out = tmp_path / f"out{tasks}"
        for resume in (False, True):
            with pytest.raises(Stopped):
                curate(
                    documents, out, OPEN, held_out=held_out, shards=shards, engine=StoppingEngine(tasks), resume=resume
                )
        again = curate(documents, out, OPEN, held_out=held_out, shards=shards, resume=True)
        assert again.tasks["resumed"] == tasks
        assert contents(out) == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_a_changed_configuration_or_input_is_named_on_resume(tmp_path: Path) -> None:
    documents, _ = mixed()
    shards = ShardOptions(partitions=2)
    with pytest.raises(Stopped):
        curate(documents, tmp_path / "out", OPEN, shards=shards, engine=StoppingEngine(2))
    other = replace(OPEN, near_duplicates=NearDuplicateRules(jaccard_threshold=0.8))
    with pytest.raises(MifyError, match=r"near_duplicates.jaccard_threshold was 0.7 and is 0.8"):
        curate(documents, tmp_path / "out", other, shards=shards, resume=True)
    with pytest.raises(MifyError, match=r"shards.partitions was 2 and is 3"):
        curate(documents, tmp_path / "out", OPEN, shards=ShardOptions(partitions=3), resume=True)
    # Other documents are not taken for those of the stopped run: what depends on them is done anew.
    again = curate(documents[1:], tmp_path / "out", OPEN, shards=shards, resume=True)
    assert again.tasks["resumed"] == 0
    fresh = curate(documents[1:], tmp_path / "fresh", OPEN, shards=shards)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert fresh.data == again.data


def test_a_work_folder_belongs_to_one_run(tmp_path: Path) -> None:
    documents, _ = mixed()

    class Nested(LocalEngine):
        def run(self, tasks: Sequence[Task], done: Callable[[int], None]) -> list[Outcome]:
            with pytest.raises(MifyError, match="another run is at work"):
                curate(documents, tmp_path / "b", OPEN, work=tmp_path / "work")
            return super().run(tasks, done)

    curate(documents, tmp_path / "a", OPEN, work=tmp_path / "work", engine=Nested())
    assert not (tmp_path / "work").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    with pytest.raises(MifyError, match="holds other files"):
        curate(documents, tmp_path / "a", OPEN, work=tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "precious"
    with pytest.raises(MifyError, match=r"thesis.tex/work cannot be written \(Not a directory\)"):
        curate(documents, tmp_path / "a", OPEN, work=tmp_path / "thesis" / "thesis.tex" / "work")
    with pytest.raises(MifyError, match="nothing to resume from"):
        curate(documents, "memory://x/out", OPEN, resume=True)


def test_a_work_folder_that_workers_do_not_share_is_named(tmp_path: Path) -> None:
    class Elsewhere(LocalEngine):
        """As if every worker had a disk of its own."""

        def run(self, tasks: Sequence[Task], done: Callable[[int], None]) -> list[Outcome]:
            outcomes = super().run(tasks, done)
            shutil.rmtree(tasks[0].output)
            return outcomes

    with pytest.raises(MifyError, match=r"the output of a worker \(filter shard 0 of .*\) is not in"):
        curate(mixed()[0], tmp_path / "out", OPEN, engine=Elsewhere())


def test_output_files_and_formats_hold_the_same_rows(tmp_path: Path) -> None:
    documents, held_out = mixed()
    curate(documents, tmp_path / "one", OPEN, held_out=held_out)
    kept = list(read_documents(tmp_path / "one" / "documents.parquet"))
    out = tmp_path / "many"
    for options in (
        OutputOptions(files=3),
        OutputOptions("jsonl.zst"),
        OutputOptions("jsonl.gz", 2),
        OutputOptions("jsonl"),
    ):
        curate(documents, out, OPEN, held_out=held_out, output=options, shards=ShardOptions(partitions=4))
        names = [name for kind in ("clusters", "documents", "held_out", "rejected") for name in options.names(kind)]
        # What the formats before left is gone.
        assert sorted(contents(out)) == sorted([*names, "report.html", "report.json"])
        found: list[Document] = []
        for name in options.names("documents"):
            if name.endswith(".parquet"):
                found += read_documents(out / name)
                continue
            data = (out / name).read_bytes()
            if name.endswith(".gz"):
                data = gzip.decompress(data)
            if name.endswith(".zst"):
                data = pa.input_stream(str(out / name), compression="zstd").read()
            found += [Document(**json.loads(line)) for line in data.splitlines()]
        assert found == kept, options
        before = contents(out)
        curate(documents, out, OPEN, held_out=held_out, output=options)
        assert contents(out) == before


def test_capped_buckets_are_counted_and_their_loss_is_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One text with one word changed in each copy: at a threshold of 0.99 all stay, and share their buckets.
    base = [f"w{i}" for i in range(400)]
    texts = []
    for place in range(120):
        changed = list(base)
        changed[place * 3] = "changed"
        texts.append(" ".join(changed))
    # A difference in punctuation: no exact copies, the same words.
    texts += [text + " !" for text in texts[::4]]
    documents = [make(text, f"{place}.txt") for place, text in enumerate(texts)]
    config = replace(OPEN, near_duplicates=NearDuplicateRules(jaccard_threshold=0.99))
    free = curate(documents, tmp_path / "out", config).data["near_duplicates"]
    assert (free["removed"], free["capped_buckets"], free["estimated_lost_pairs"]) == (30, 0, 0.0)
    monkeypatch.setattr(sharded_run, "BUCKET_CAP", 1)
    reports = []
    for partitions in (1, 5):
        shards = ShardOptions(partitions=partitions, entries_per_task=64)
        reports.append(curate(documents, tmp_path / "out", config, shards=shards).data["near_duplicates"])
    assert reports[0] == reports[1]
    capped = reports[0]
    assert capped["capped_buckets"] > 0
    assert capped["removed"] < 30
    assert capped["skipped_pairs_sampled"] == min(1000, capped["skipped_pairs"])
    assert capped["skipped_pairs_sampled_lost"] > 0
    # A lost pair was skipped in each bucket that it shares.
    assert capped["estimated_lost_pairs"] >= 30 - capped["removed"]


def test_a_killed_command_goes_on_with_resume(tmp_path: Path) -> None:
    """A real kill of the driver and its workers, twice, at different steps."""
    documents, _ = mixed()
    with (tmp_path / "in.jsonl").open("w") as file:
        for document in documents:
            if isinstance(document, Document):
                record = {"text": document.text, "path": document.path, "repo": document.repo, "license": "MIT"}
                file.write(json.dumps(record | {"language": "text"}) + "\n")
    (tmp_path / "rules.toml").write_text(
        '[decontamination]\nbenchmarks = []\n[quality.prose]\nenabled = false\n[language]\nunknown = "accept"\n'
    )
    command = [sys.executable, "-c", "from mify.cli import main; main()", "curate", str(tmp_path / "in.jsonl")]
    command += ["--config", str(tmp_path / "rules.toml"), "--partitions", "3", "--workers", "2", "--out"]
    subprocess.run([*command, str(tmp_path / "a")], check=True, stdout=subprocess.DEVNULL)
    for step, resume in (("filter", []), ("sign", ["--resume"])):
        process = subprocess.Popen(
            [*command, str(tmp_path / "b"), *resume], stdout=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while not list((tmp_path / ".b.work" / step).glob("*/task.json")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "b" / "report.json").exists()
    again = subprocess.run([*command, str(tmp_path / "b"), "--resume"], check=True, capture_output=True, text=True)
    assert " tasks were done before" in again.stdout
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not (tmp_path / ".b.work").exists()
