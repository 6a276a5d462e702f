"""The sandbox as an ordinary user has it: one uid, user namespaces. Run from root, by giving root up in a child."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from hostile_programs import ENDS, ESCAPES, FORGERIES, RIGHT, TESTS, WRONG
from mify.errors import MifyError
from mify.eval.launch import Mounts, SandboxKind
from mify.eval.programs import Limits, Program
from mify.eval.worker import Worker

def program(source):
    return Program("hostile", source, TESTS, entry_points=("add",))

limits = Limits(wall_s=4.0, cpu_s=1.0, memory_bytes=256 << 20, processes=8)
report = {}
with Worker(SandboxKind(sys.argv[1], "pidns", ""), Mounts(sys.executable), limits) as worker:
    try:
        worker.run(program(RIGHT))
    except MifyError as error:
        print(json.dumps({"skip": str(error)}))
        sys.exit()
    groups = {
        "honest": [RIGHT],
        "wrong": [WRONG],
        "ends": [source for source, status in ENDS if status != "timeout"] + ["while True:\\n    pass"],
        "forgeries": list(FORGERIES.values()),
        "escapes": [f"{escape}\\n{RIGHT}" for escape in ESCAPES],
        "bomb": ["import os\\nwhile True:\\n    try:\\n        os.fork()\\n    except OSError: pass"],
        "memory": ["import os, time\\nfor _ in range(4):\\n    if os.fork() == 0:\\n"
                   "        x = bytearray(200 << 20)\\n        time.sleep(9)\\ntime.sleep(9)"],
        "signals": ["import os, resource\\nfor pid in [os.getppid(), *range(1, 99)]:\\n"
                    "    if pid == os.getpid(): continue\\n"
                    "    try: resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0))\\n"
                    "    except Exception: pass\\n    try: os.kill(pid, 9)\\n"
                    "    except Exception: pass\\nos._exit(0)"],
        "still honest": [RIGHT],
    }
    for group, sources in groups.items():
        report[group] = [worker.run(program(source)).status for source in sources]
    report["starts"] = worker.starts
print(json.dumps(report))
"""


def ordinary_python() -> str | None:
    """An interpreter that a user without rights can start."""
    for path in (sys.executable, "/usr/bin/python3"):
        try:
            check = "import sys; sys.exit(sys.version_info < (3, 11))"
            if subprocess.run([path, "-c", check], user=65534, group=65534, extra_groups=[]).returncode == 0:
                return os.path.realpath(path)
        except OSError:
            continue
    return None


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can read (pytest's own is closed to others)."""
    with tempfile.TemporaryDirectory(prefix="mify-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="as an ordinary user, test_hostile tests the same")
@pytest.mark.parametrize(("kind", "command"), [("bubblewrap", "bwrap"), ("unshare", "unshare")])
def test_hostile_programs_of_an_ordinary_user(open_folder: Path, checkout: Path, kind: str, command: str) -> None:
    python = ordinary_python()
    if python is None:
        pytest.skip("no Python 3.11 that a user without rights can start")
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")
    shutil.copytree(checkout / "mify" / "eval", open_folder / "mify" / "eval")
    shutil.copy(checkout / "mify" / "errors.py", open_folder / "mify")
    shutil.copy(checkout / "bench" / "hostile_programs.py", open_folder)
    done = subprocess.run(
        [python, "-B", "-c", SCRIPT, kind],
        user=65534, group=65534, extra_groups=[], cwd=open_folder, capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(open_folder), "TMPDIR": "/tmp"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    if "skip" in report:
        pytest.skip(report["skip"])
    assert report["honest"] == report["still honest"] == ["passed"]
    assert report["wrong"] == ["failed"]
    for group in ("ends", "forgeries", "escapes", "bomb", "memory", "signals"):
        held = [status not in ("passed", "undecided") for status in report[group]]
        assert all(held), (group, held.index(False), report[group])
    assert report["bomb"] == ["timeout"]
    assert report["memory"] == ["memory"]
    assert report["signals"] == ["exited"]
    # Only the program that used up all memory together cost the worker its life.
    assert report["starts"] <= 2, report
