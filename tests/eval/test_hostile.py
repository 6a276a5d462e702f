"""Programs that attack the harness: none is judged a pass, none survives its run, none harms what is outside."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mify.bench.hostile_programs import ENDS, ESCAPES, FORGERIES, RIGHT, TESTS, WRONG
from mify.eval.cgroup import Cgroup
from mify.eval.launch import Mounts, SandboxKind, host_python, sandbox_kind
from mify.eval.programs import Form, Limits, Program, Verdict
from mify.eval.sandbox import run_programs
from mify.eval.worker import Worker

LIMITS = Limits(wall_s=6.0, cpu_s=1.0, memory_bytes=256 << 20, output_bytes=1 << 20, processes=8)


def program(source: str) -> Program:
    return Program("hostile", source, TESTS, entry_points=("add",))


def kinds() -> list[SandboxKind]:
    isolation = "uid" if os.geteuid() == 0 else "pidns"
    installed = [("bubblewrap", "bwrap"), ("unshare", "unshare")]
    return [SandboxKind(name, isolation, "") for name, command in installed if shutil.which(command)]


@pytest.fixture(scope="module", params=kinds(), ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> SandboxKind:
    assert isinstance(request.param, SandboxKind)
    return request.param


@pytest.fixture(scope="module")
def hasty(kind: SandboxKind) -> Iterator[Worker]:
    """A worker for programs that only its clock ends."""
    with Worker(kind, Mounts(host_python()), replace(LIMITS, wall_s=1.5), index=41) as worker:
        yield worker


@pytest.fixture(scope="module")
def worker(kind: SandboxKind) -> Iterator[Worker]:
    if not sandbox_kind().confined:
        pytest.skip(f"no sandbox works here: {sandbox_kind().reason}")
    with Worker(kind, Mounts(host_python()), LIMITS, index=40) as worker:
        try:
            worker.run(program(RIGHT))
        except Exception as problem:  # noqa: BLE001 - one of two ways to confine may not work on a machine
            pytest.skip(f"{kind.name} does not work here: {problem}")
        yield worker


def judge(worker: Worker, source: str, form: Form = "auto") -> Verdict:
    """The verdict on a hostile program; the worker (or its successor) must judge an honest one right afterwards."""
    verdict = worker.run(program(source), form)
    for source, status in ((RIGHT, "passed"), (WRONG, "failed")):
        honest = worker.run(program(source), "joint")
        if honest.status == "timeout":  # a loaded machine, and a brief limit
            honest = worker.run(program(source), "joint")
        assert honest.status == status, f"after {verdict}"
    assert left_behind() == [], f"after {verdict}"
    return verdict


def left_behind() -> list[str]:
    """Processes of this machine that carry a hostile program's mark, looked at from outside every sandbox."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if b"MIFY_HOSTILE_MARK" in (folder / "cmdline").read_bytes():
                    found.append(folder.name)
            except OSError:
                continue
    return found


@pytest.mark.parametrize("form", ["joint", "apart", "auto"])
def test_honest_programs(worker: Worker, form: Form) -> None:
    assert worker.run(program(RIGHT), form).status == "passed"
    wrong = worker.run(program(WRONG), form)
    assert (wrong.status, wrong.detail) == ("failed", "AssertionError: ")


@pytest.mark.parametrize(("source", "status"), ENDS, ids=lambda value: None)
def test_ends(worker: Worker, hasty: Worker, source: str, status: str) -> None:
    # What ignores SIGXCPU is ended by the clock, or later by the kernel's hard limit: here the clock comes first.
    verdict = judge(hasty if "sleep" in source or "SIG_IGN" in source else worker, source)
    assert verdict.status == status, verdict


@pytest.mark.parametrize("form", ["auto", "apart"])
@pytest.mark.parametrize("name", FORGERIES)
def test_forged_verdicts(worker: Worker, name: str, form: Form) -> None:
    verdict = judge(worker, FORGERIES[name], form)
    assert verdict.status in ("failed", "exited", "forged"), verdict


def test_a_redefined_builtin_does_not_reach_the_tests(worker: Worker) -> None:
    source = "def add(a, b):\n    return 0\ndef abs(x):\n    return 0"
    tests = "assert abs(add(1, 2) - 3) < 1e-6"
    shadowed = Program("p", source, tests, entry_points=("add",))
    assert worker.run(shadowed, "joint").status == "passed"  # as in the original harness
    assert worker.run(shadowed, "auto").status == "failed"


def test_a_suspect_program_that_is_right_passes(worker: Worker) -> None:
    source = "import sys\ndef add(a, b):\n    return int(eval('a + b')) if sys.maxsize else 0"
    verdict = worker.run(program(source))
    assert verdict.status == "passed"
    assert verdict.apart


@pytest.mark.parametrize("bomb", ["os.fork()", "threading.Thread(target=time.sleep, args=(30,)).start()"])
def test_fork_bomb(hasty: Worker, bomb: str) -> None:
    started = time.monotonic()
    body = (
        "import os, signal, threading, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"while True:\n    try:\n        {bomb}\n    except (OSError, RuntimeError): pass"
    )
    assert judge(hasty, body).status in ("timeout", "memory", "crashed")
    assert time.monotonic() - started < 60


def test_processes_left_behind_are_killed(worker: Worker) -> None:
    marker = "MIFY_HOSTILE_MARK"
    source = (
        "import os, signal, time\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        for n in (1, 2, 15):\n            signal.signal(n, signal.SIG_IGN)\n"
        f"        os.execv('/bin/sh', ['sh', '-c', 'while :; do sleep 1; done', '{marker}'])\n"
        "time.sleep(0.3)\n" + RIGHT
    )
    verdict = judge(worker, source)
    assert verdict.status in ("passed", "exited", "failed")
    assert left_behind() == []


def test_memory_of_many_processes_together(worker: Worker) -> None:
    source = (
        "import os, time\nfor _ in range(6):\n    if os.fork() == 0:\n        x = bytearray(150 << 20)\n"
        "        time.sleep(30)\ntime.sleep(30)"
    )
    started = time.monotonic()
    verdict = judge(worker, source)
    # The host's watch sees it, or the kernel's out-of-memory killer in the control group does first.
    assert verdict.status in ("memory", "crashed", "broke"), verdict
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("escape", ESCAPES)
def test_escapes(worker: Worker, escape: str) -> None:
    verdict = judge(worker, f"{escape}\n{RIGHT}")
    assert verdict.status in ("failed", "crashed"), verdict
    assert not Path("/usr/mify-hostile").exists()


def test_network(worker: Worker) -> None:
    """A listener on this machine's loopback hears nothing, and no vsock to a host of a virtual machine opens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        address = listener.getsockname()
        connect = f"import socket\nsocket.create_connection({address!r}, timeout=1)\n" + RIGHT
        assert judge(worker, connect).status == "failed"
        with pytest.raises(TimeoutError):
            listener.accept()
    assert judge(worker, "import socket\nsocket.socket(40, socket.SOCK_STREAM)\n" + RIGHT).status == "failed"
    assert judge(worker, "import socket\nsocket.create_connection(('1.1.1.1', 53), timeout=1)").status == "failed"


def test_signals_to_the_harness(worker: Worker) -> None:
    """Whatever it signals, limits or traces: the harness above it lives, and this program is no pass."""
    source = (
        "import os, resource, signal\nme = os.getpid()\n"
        "for pid in [os.getppid(), *range(1, 200)]:\n    if pid in (0, me): continue\n"
        "    try: resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0))\n    except Exception: pass\n"
        "    for number in (signal.SIGSTOP, signal.SIGKILL):\n"
        "        try: os.kill(pid, number)\n        except Exception: pass\n"
        "os._exit(0)"
    )
    starts = worker.starts
    verdict = judge(worker, source)
    assert verdict.status == "exited", verdict
    assert worker.starts == starts, "the program reached the worker"


def test_nothing_of_a_program_is_left_for_the_next(worker: Worker) -> None:
    leave = (
        "import os\nos.makedirs('/tmp/a/b/c')\nopen('/tmp/a/b/c/secret', 'w').write('x')\nos.chmod('/tmp/a/b', 0)\n"
        "os.symlink('/usr', '/tmp/link')\nos.environ['SECRET'] = 'x'\n" + RIGHT
    )
    assert worker.run(program(leave)).status == "passed"
    look = "import os\nassert os.listdir('/tmp') == [], os.listdir('/tmp')\nassert 'SECRET' not in os.environ\n" + RIGHT
    verdict = worker.run(program(look))
    assert verdict.status == "passed", verdict


def test_control_group_limits_and_goes(tmp_path: Path) -> None:
    group = Cgroup.make("mify-test-group", 64 << 20, 5)
    if group is None:
        pytest.skip("this user may make no control group here")
    try:
        script = "import subprocess, sys\nps = []\ntry:\n    for _ in range(20):\n"
        script += "        ps.append(subprocess.Popen(['sleep', '5']))\nexcept OSError: pass\nprint(len(ps))\n"
        script += "for p in ps: p.kill()"
        done = subprocess.run([*group.command(), sys.executable, "-c", script], capture_output=True, text=True)
        assert 1 <= int(done.stdout) <= 5, done
        hungry = "x = bytearray(200 << 20)\nprint(len(x))"
        done = subprocess.run([*group.command(), sys.executable, "-c", hungry], capture_output=True, text=True)
        assert done.returncode != 0
        assert done.stdout == ""
        assert all(folder.is_dir() for folder in group.folders)
    finally:
        folders = list(group.folders)
        group.close()
    assert not any(folder.exists() for folder in folders)
    assert Cgroup.make("x", 1, 1, root=tmp_path) is None


def test_scratch_is_bounded(worker: Worker) -> None:
    fill = "for n in range(100):\n    open(f'/tmp/{n}', 'wb').write(bytes(15 << 20))\n" + RIGHT
    verdict = judge(worker, fill)
    assert verdict.status == "failed"
    assert "No space left" in verdict.detail
    large = judge(worker, "open('/tmp/x', 'wb').write(bytes(20 << 20))\n" + RIGHT)
    assert "File too large" in large.detail


def test_a_deep_tree_does_not_stop_the_worker(worker: Worker) -> None:
    deep = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\n" + RIGHT
    judge(worker, deep)


def test_no_harness_file_is_in_reach(worker: Worker) -> None:
    source = (
        "import os\nfound = [os.path.join(f, n) for top in ('/tmp', '/dev', '/usr/share', '/usr/local')\n"
        "         for f, _, names in os.walk(top) for n in names if 'mify' in n]\nassert found == [], found\n"
        "import sys\nassert not [m for m in sys.modules if m.startswith('mify')]\n" + RIGHT
    )
    assert worker.run(program(source)).status == "passed"


def test_state_is_the_same_for_every_program(worker: Worker) -> None:
    """Randomness and hashes start alike, so a verdict does not depend on which worker judged."""
    source = "import random\nprint(random.random(), hash('mify'))\n" + RIGHT
    assert worker.run(program(source)).output == worker.run(program(source)).output


def test_verdicts_do_not_depend_on_the_pool() -> None:
    if not sandbox_kind().confined:
        pytest.skip(f"no sandbox works here: {sandbox_kind().reason}")
    sources = [RIGHT, WRONG, "import os\nos._exit(0)", "print(1)\n" + RIGHT] * 8
    programs = [Program(str(index), source, TESTS, entry_points=("add",)) for index, source in enumerate(sources)]
    one = run_programs(programs, workers=1, limits=LIMITS)
    three = run_programs(programs, workers=3, limits=LIMITS)
    assert [(v.id, v.status) for v in one] == [(v.id, v.status) for v in three]
    assert [v.id for v in one] == [p.id for p in programs]


def test_a_timeout_is_run_again_alone() -> None:
    if not sandbox_kind().confined:
        pytest.skip(f"no sandbox works here: {sandbox_kind().reason}")
    slow = Program("slow", "import time\ntime.sleep(9)")
    quick = [Program(str(index), RIGHT, TESTS) for index in range(3)]
    seen: list[str] = []
    verdicts = run_programs(
        [slow, *quick], workers=2, limits=Limits(wall_s=0.5), on_verdict=lambda verdict: seen.append(verdict.id)
    )
    assert (verdicts[0].status, verdicts[0].retried) == ("timeout", True)
    assert seen[-1] == "slow"
    assert [verdict.status for verdict in verdicts[1:]] == ["passed"] * 3


def test_killing_the_host_process_ends_its_sandboxes() -> None:
    if not sandbox_kind().confined:
        pytest.skip(f"no sandbox works here: {sandbox_kind().reason}")
    script = (
        "from mify.eval.sandbox import run_programs, Program, Limits\n"
        "source = \"import os\\nos.execv('/bin/sh', ['sh', '-c', 'while :; do sleep 1; done', 'MIFY_HOSTILE_MARK'])\"\n"
        "run_programs([Program('x', source)], workers=1, limits=Limits(wall_s=300, cpu_s=300))\n"
    )
    host = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 30
        while not left_behind() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left_behind(), "the program did not start"
    finally:
        host.kill()
        host.wait()
    deadline = time.monotonic() + 20
    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_behind() == []


@pytest.mark.parametrize(
    "look",
    [
        "frame = sys._getframe()\nwhile frame:\n    things += list(frame.f_locals.values())\n    frame = frame.f_back",
        "things += gc.get_objects()",
    ],
)
def test_a_solution_apart_finds_no_tests(worker: Worker, look: str) -> None:
    """Its process got them in the same message; nothing that Python can reach holds them any more."""
    source = (
        f"import gc, sys\nthings = []\n{look}\n"
        "texts = [v for t in things if isinstance(t, dict) for v in list(t.values())] + things\n"
        "assert not [t for t in texts if isinstance(t, str) and 'a secret' + ' of the tests' in t]\n" + RIGHT
    )
    tests = TESTS + "\n# a secret of the tests"
    verdict = worker.run(Program("x", source, tests, entry_points=("add",)), "apart")
    assert verdict.status == "passed", verdict
