"""A control group for one worker, where the user may make one: memory and processes limited by the kernel as a whole.

Root may nearly everywhere; an ordinary user where a group with these controllers was delegated. Elsewhere the rlimits
of each process and the host's watch over their sum (`worker.resident_bytes`) stand alone.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "pids")


class Cgroup:
    """Groups named `name`, one per hierarchy; gone after `close`.

    Args:
        folders: the groups' folders.
    """

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders

    @staticmethod
    def make(name: str, memory_bytes: int, processes: int, root: Path = ROOT) -> Cgroup | None:
        """A group with these limits, or None where none can be made here."""
        made = Cgroup([])
        try:
            if (root / "cgroup.controllers").is_file():
                base = _delegated(root)
                if base is None:
                    return None
                made._add(base / name, {"memory.max": memory_bytes, "pids.max": processes})
                _write(base / name / "memory.swap.max", 0)
            else:
                made._add(root / "memory" / name, {"memory.limit_in_bytes": memory_bytes})
                _write(root / "memory" / name / "memory.memsw.limit_in_bytes", memory_bytes)
                made._add(root / "pids" / name, {"pids.max": processes})
        except OSError:
            made.close()
            return None
        return made

    def _add(self, folder: Path, limits: dict[str, int]) -> None:
        folder.mkdir()
        self.folders.append(folder)
        for name, value in limits.items():
            (folder / name).write_text(str(value))

    def command(self) -> list[str]:
        """What stands before a command so that it runs in the group from its first moment."""
        joined = ":".join(str(folder / "cgroup.procs") for folder in self.folders)
        script = 'IFS=:; for group in $0; do echo $$ > "$group"; done; unset IFS; exec "$@"'
        return ["sh", "-c", script, joined]

    def close(self) -> None:
        """Removes the groups, once the processes in them are gone."""
        for folder in self.folders:
            for _ in range(100):
                with contextlib.suppress(FileNotFoundError):
                    try:
                        folder.rmdir()
                    except OSError:
                        time.sleep(0.01)
                        continue
                break
        self.folders = []


def _delegated(root: Path) -> Path | None:
    """The group of the unified hierarchy under which ours can stand: the root for root, else this process's own."""
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    for base in (root, root / own.strip().lstrip("/")):
        try:
            enabled = (base / "cgroup.subtree_control").read_text().split()
        except OSError:
            continue
        if set(CONTROLLERS) <= set(enabled) and os.access(base, os.W_OK):
            return base
    return None


def _write(path: Path, value: int) -> None:
    with contextlib.suppress(OSError):  # kernels without swap accounting lack the file
        path.write_text(str(value))
