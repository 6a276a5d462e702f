"""How a worker is confined on this machine: the command lines, and a real trial of each before it is relied on.

    bubblewrap      read-only /usr and Python, private /tmp, no network, own PID, IPC and UTS namespaces
    unshare         the same from util-linux alone (a root of bind mounts on a tmpfs), where bubblewrap is not installed
    none            rlimits only: never chosen by itself

As root a program gets an unprivileged uid of its worker's own; an ordinary user gets a user namespace. (As root under
`bwrap --unshare-all` a program would stay uid 0 outside, for which the kernel ignores the process limit: a fork bomb
lived through that in a trial.)
"""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mify.errors import MifyError
from mify.eval.cgroup import Cgroup

SCRATCH = "/tmp"
PACKAGES_FOLDER = "/packages"
_CAP_SETGID, _CAP_SETUID, _CAP_SYS_ADMIN = 6, 7, 21
INSTALL_HINT = "install bubblewrap (Debian and Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap)"


@dataclass(frozen=True, slots=True)
class SandboxKind:
    """What confines programs here, and why not something stronger (for `mify doctor` and the records of a run)."""

    name: str  # "bubblewrap" | "unshare" | "none"
    isolation: str  # "uid" (started as root) | "pidns" (ordinary user) | "none"
    reason: str

    @property
    def confined(self) -> bool:
        return self.name != "none"


@dataclass(frozen=True, slots=True)
class Mounts:
    """What a program may see of the host, read-only.

    Args:
        python: the interpreter; its whole prefix is mounted at its own path.
        packages: (host folder or file, name) pairs that appear under /packages, on the import path.
    """

    python: str
    packages: tuple[tuple[str, str], ...] = ()

    @property
    def prefix(self) -> Path:
        return Path(self.python).parent.parent


def host_python() -> str:
    """The base interpreter behind a virtual environment: programs see the standard library and nothing installed."""
    base = Path(getattr(sys, "_base_executable", sys.executable) or sys.executable).resolve()
    return str(base)


def package_mounts(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Where the named packages (and the `NAME.libs` of their wheel) lie on this machine.

    Raises:
        MifyError: one of them is not installed.
    """
    from importlib.util import find_spec

    found: list[tuple[str, str]] = []
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise MifyError(
                f"the package {name}, which this benchmark's tests import, is not installed", f"pip install {name}"
            )
        if spec.submodule_search_locations is None:  # a module of one file
            found.append((spec.origin, Path(spec.origin).name))
            continue
        folder = Path(spec.origin).parent
        found.append((str(folder), name))
        libraries = folder.parent / f"{name}.libs"
        if libraries.is_dir():
            found.append((str(libraries), libraries.name))
    return tuple(found)


def worker_command(kind: SandboxKind, mounts: Mounts, scratch_bytes: int, new_root: str) -> list[str]:
    """The command that starts one worker, without the worker's own arguments.

    Args:
        scratch_bytes: the size of the private /tmp.
        new_root: an empty folder of the host (used by `unshare`).
    """
    if kind.name == "bubblewrap":
        return _bubblewrap(kind, mounts, scratch_bytes)
    if kind.name == "unshare":
        return _unshare(kind, mounts, scratch_bytes, new_root)
    return []


def _bubblewrap(kind: SandboxKind, mounts: Mounts, scratch_bytes: int) -> list[str]:
    command = ["bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--die-with-parent", "--new-session", "--clearenv", "--setenv", "PYTHONHASHSEED", "0"]
    command += ["--ro-bind", "/usr", "/usr"]
    for link in ("lib", "lib64", "bin"):
        if Path("/", link).is_symlink():
            command += ["--symlink", f"usr/{link}", f"/{link}"]
        elif Path("/", link).is_dir():
            command += ["--ro-bind", f"/{link}", f"/{link}"]
    if not mounts.prefix.is_relative_to("/usr"):
        for parent in reversed(mounts.prefix.parents[:-1]):  # bwrap would make them for its own uid only
            command += ["--perms", "0755", "--dir", str(parent)]
        command += ["--ro-bind", str(mounts.prefix), str(mounts.prefix)]
    if mounts.packages:
        command += ["--perms", "0755", "--dir", PACKAGES_FOLDER]
    for host, name in mounts.packages:
        command += ["--ro-bind", host, f"{PACKAGES_FOLDER}/{name}"]
    # /dev is a tmpfs without a size limit, so it is closed (/dev/shm with it: one folder to wipe, not two). No /proc at
    # all: nothing to read of other processes there.
    command += ["--dev", "/dev", "--remount-ro", "/dev"]
    command += [
        "--perms",
        "1777",
        "--size",
        str(scratch_bytes),
        "--tmpfs",
        SCRATCH,
        "--remount-ro",
        "/",
        "--chdir",
        SCRATCH,
    ]
    command += ["--cap-drop", "ALL"]
    if kind.isolation == "uid":
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--disable-userns", "--cap-add", "CAP_SYS_ADMIN"]
    return command


def _unshare(kind: SandboxKind, mounts: Mounts, scratch_bytes: int, new_root: str) -> list[str]:
    command = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
    if kind.isolation == "pidns":
        command += ["--user", "--map-root-user"]
    bind = [["/usr", "/usr"]]
    for name in ("lib", "lib64", "bin"):
        if not Path("/", name).is_symlink() and Path("/", name).is_dir():
            bind.append([f"/{name}", f"/{name}"])
    if not mounts.prefix.is_relative_to("/usr"):
        bind.append([str(mounts.prefix), str(mounts.prefix)])
    bind += [[host, f"{PACKAGES_FOLDER}/{name}"] for host, name in mounts.packages]
    plan = {
        "root": new_root,
        "scratch_bytes": scratch_bytes,
        "keep": [_CAP_SETGID, _CAP_SETUID] if kind.isolation == "uid" else [_CAP_SYS_ADMIN],
        "bind": bind,
        "seal_user_namespaces": kind.isolation == "pidns",
    }
    return [*command, mounts.python, "-I", "-S", "-B", "-c", _inside("root"), json.dumps(plan)]


@functools.cache
def sandbox_kind() -> SandboxKind:
    """The strongest confinement that really works here, found by starting a worker in each.

    `name` is "none" where neither works; programs are then refused unless the user insists.
    """
    if platform.system() != "Linux":
        return SandboxKind(
            "none", "none", f"{platform.system()} has no namespaces; run the evaluation in a Linux virtual machine"
        )
    isolation = "uid" if os.geteuid() == 0 else "pidns"
    reasons = []
    for name, program in (("bubblewrap", "bwrap"), ("unshare", "unshare")):
        if shutil.which(program) is None:
            reasons.append(f"{program} is not installed")
            continue
        kind = SandboxKind(name, isolation, "; ".join(reasons) or f"{program} works here")
        problem = _trial(kind)
        if problem is None:
            return kind
        reasons.append(f"{name} does not work here ({problem})")
    return SandboxKind("none", "none", "; ".join(reasons))


def _trial(kind: SandboxKind) -> str | None:
    """Starts a worker and runs a program that must pass and one that must not; what went wrong, or None."""
    from mify.eval.programs import Limits, Program
    from mify.eval.worker import Worker

    try:
        with Worker(kind, Mounts(host_python()), Limits(wall_s=20, cpu_s=20), index=63) as worker:
            good = worker.run(Program("trial", "def add(a, b):\n    return a + b", "assert add(1, 2) == 3"))
            bad = worker.run(Program("trial", "import os\nos._exit(0)"))
    except MifyError as error:
        return error.problem.strip().splitlines()[-1][:200]
    if good.status != "passed" or bad.status == "passed":
        return f"a trial program was judged {good.status} ({good.detail}), one that left early {bad.status}"
    return None


def remedy() -> str:
    """What to tell a user whose machine cannot confine programs."""
    hints = [INSTALL_HINT]
    restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    if os.geteuid() != 0 and restricted.exists() and restricted.read_text().strip() == "1":
        hints.append("let users make namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0)")
    if _in_container():
        hints.append("in a container, allow user namespaces or run it with --security-opt seccomp=unconfined")
    return ", ".join([*hints, "or insist on running generated code unconfined with --unconfined"])


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


# Makes modules of the texts in argv[1], under the names they have here, and starts the worker.
_BOOTSTRAP = """
import json, sys, types
for name, text in json.loads(sys.argv[1]):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, "<" + name + ">", "exec"), module.__dict__)
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
sys.modules["mify.eval.inside.worker"].main(*sys.argv[2:])
"""


def start(
    kind: SandboxKind,
    mounts: Mounts,
    job_uid: int,
    scratch_bytes: int,
    new_root: str,
    preload: tuple[str, ...],
    cgroup: Cgroup | None = None,
) -> subprocess.Popen[bytes]:
    """Starts one worker process, talking over its stdin and stdout, in the control group where there is one."""
    texts = [("mify", ""), ("mify.eval", ""), ("mify.eval.inside", "")]
    texts += [(f"mify.eval.inside.{name}", _inside(name)) for name in ("confine", "apart", "worker")]
    python = [mounts.python, "-s", "-S", "-B", "-P", "-c", _BOOTSTRAP, json.dumps(texts)]
    packages = PACKAGES_FOLDER if mounts.packages else ""
    scratch = SCRATCH if kind.confined else new_root
    arguments = [kind.isolation, str(job_uid), scratch, ",".join(preload), packages]
    command = worker_command(kind, mounts, scratch_bytes, new_root)
    if cgroup is not None:
        command = [*cgroup.command(), *command]
    environment = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "PYTHONHASHSEED": "0"}
    return subprocess.Popen(
        [*command, *python, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


@functools.cache
def _inside(name: str) -> str:
    return Path(__file__).parent.joinpath("inside", f"{name}.py").read_text(encoding="utf-8")
