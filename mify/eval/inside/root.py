"""Builds the private root of the `unshare` form, then becomes the worker. Runs as root of new namespaces.

argv[1] is JSON: {"root": an empty folder of the host, "scratch_bytes", "keep": numbers of the capabilities the worker
keeps, "bind": [[host folder, place], …], "seal_user_namespaces": bool}; argv[2:] is the worker's command. Every mount
is private to this mount namespace and goes with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
LOCKED = {"noexec": 8, "nodev": MS_NODEV, "nosuid": MS_NOSUID, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
MNT_DETACH, PR_CAPBSET_DROP = 2, 24
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        sys.exit(f"{what}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded = [None if value is None else os.fsencode(value) for value in (source, target, kind)]
    check(libc.mount(*encoded, ctypes.c_ulong(flags), options.encode()), f"mount {target}")


def locked_flags(path: str) -> int:
    """The flags of the mount a path lies on: a read-only remount inside a user namespace must repeat them."""
    flags, longest = 0, -1
    with open("/proc/self/mountinfo") as file:
        for line in file:
            place, options = line.split()[4:6]
            if (path == place or path.startswith(place.rstrip("/") + "/")) and len(place) > longest:
                longest = len(place)
                flags = sum(LOCKED.get(option, 0) for option in options.split(","))
    return flags


def build(plan: dict[str, Any]) -> None:
    root = plan["root"]
    flags = {host: locked_flags(os.path.realpath(host)) for host, _ in plan["bind"]}
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for host, place in plan["bind"]:
        if os.path.isdir(host):
            os.makedirs(root + place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(root + place), exist_ok=True)
            open(root + place, "w").close()
        mount(host, root + place, None, MS_BIND | MS_REC)
        mount(None, root + place, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | flags[host])
    for name in ("lib", "lib64", "bin"):
        if os.path.islink(f"/{name}"):
            os.symlink(f"usr/{name}", f"{root}/{name}")
    for name in ("dev", "tmp", "old"):
        os.mkdir(f"{root}/{name}")
    for name in ("null", "zero", "full", "random", "urandom"):
        open(f"{root}/dev/{name}", "w").close()
        mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={plan['scratch_bytes']}")
    if plan["seal_user_namespaces"]:
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")
    os.chdir(root)
    check(libc.pivot_root(b".", b"old"), "pivot_root")
    os.chdir("/")
    check(libc.umount2(b"/old", MNT_DETACH), "umount of the old root")
    os.rmdir("/old")
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir("/tmp")


def main() -> None:
    plan = json.loads(sys.argv[1])
    build(plan)
    for number in range(64):
        if number not in plan["keep"]:
            libc.prctl(
                PR_CAPBSET_DROP, number, 0, 0, 0
            )  # fails beyond the kernel's last capability: nothing to drop there
    os.execve(sys.argv[2], sys.argv[2:], {"PYTHONHASHSEED": "0"})


if __name__ == "__main__":
    main()
