"""How a process gives up what it could do: resource limits, identity, capabilities, system calls."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
CLONE_NEWPID = 0x20000000
REFUSED = 71  # exit status of a process that could not be confined

libc = ctypes.CDLL(None, use_errno=True)

# System calls a benchmark program has no use for, that reach what namespaces and rlimits leave open: other processes'
# memory, nested namespaces, kernel interfaces with a history of holes, and memory that outlives its process. EPERM.
_DENIED = {
    "x86_64": (
        101, 310, 311, 438,  # ptrace, process_vm_readv, process_vm_writev, pidfd_getfd
        155, 161, 165, 166, 272, 308,  # pivot_root, chroot, mount, umount2, unshare, setns
        428, 429, 430, 431, 432, 433, 442,  # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr
        248, 249, 250, 298, 303, 304, 321, 323, 425,  # keys, perf, file handles, bpf, userfaultfd, io_uring_setup
        29, 64, 68, 240, 319,  # shmget, semget, msgget, mq_open, memfd_create
        175, 176, 246, 313,  # modules, kexec_load
    ),
    "aarch64": (
        117, 270, 271, 438, 41, 51, 40, 39, 97, 268, 428, 429, 430, 431, 432, 433, 442, 217, 218, 219, 241, 264, 265,
        280, 282, 425, 194, 190, 186, 180, 279, 105, 106, 104, 273,
    ),
}  # fmt: skip
# AUDIT_ARCH_*, then the numbers of clone, clone3, socket, prlimit64.
_SPECIAL = {"x86_64": (0xC000003E, 56, 435, 41, 302), "aarch64": (0xC00000B7, 220, 435, 198, 261)}
_CLONE_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag
# Unix, IPv4, IPv6. A network namespace does not hold vsock, which reaches the host of a virtual machine.
_SOCKET_FAMILIES = (1, 2, 10)
_X32_BIT = 0x40000000


def seccomp_filter(machine: str) -> bytes | None:
    """The BPF program (seccomp(2)) for this architecture; None where none is written for it.

    Offsets in seccomp_data: the number at 0, the architecture at 4, the low half of argument i at 16 + 8·i.
    """
    if machine not in _DENIED:
        return None
    arch, clone, clone3, socket, prlimit = _SPECIAL[machine]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, eperm, enosys = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    code: list[tuple[int, int, int, int]] = []

    def instruction(operation: int, operand: int, if_true: int = 0, if_false: int = 0) -> None:
        code.append((operation, if_true, if_false, operand))

    instruction(load, 4)
    instruction(equal, arch, 1, 0)
    instruction(give, kill)
    instruction(load, 0)
    instruction(at_least, _X32_BIT, 0, 1)
    instruction(give, eperm)
    for number in _DENIED[machine]:
        instruction(equal, number, 0, 1)
        instruction(give, eperm)
    instruction(equal, clone3, 0, 1)
    instruction(give, enosys)  # glibc then uses clone, whose flags can be looked at
    instruction(equal, clone, 0, 4)
    instruction(load, 16)
    instruction(any_bit, _CLONE_NAMESPACES, 0, 1)
    instruction(give, eperm)
    instruction(give, allow)
    instruction(equal, prlimit, 0, 4)
    instruction(load, 16)
    instruction(equal, 0, 1, 0)  # only its own limits
    instruction(give, eperm)
    instruction(give, allow)
    instruction(equal, socket, 0, 2 + len(_SOCKET_FAMILIES))
    instruction(load, 16)
    for index, family in enumerate(_SOCKET_FAMILIES):
        instruction(equal, family, len(_SOCKET_FAMILIES) - index, 0)
    instruction(give, eperm)
    instruction(give, allow)
    return b"".join(struct.pack("HBBI", *entry) for entry in code)


def install_seccomp() -> bool:
    """Installs the filter in this process and its children; False where the kernel or the architecture has none."""
    program = seccomp_filter(platform.machine())
    if program is None:
        return False
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    mode_filter = 2
    return bool(libc.prctl(PR_SET_SECCOMP, mode_filter, header, 0, 0) == 0)


def give_up_identity(isolation: str, job_uid: int) -> None:
    """No capability and no way to gain one; in `uid` isolation, another uid. Ends the process where that fails."""
    if isolation == "uid":
        os.setgroups([])
        os.setresgid(job_uid, job_uid, job_uid)
        os.setresuid(job_uid, job_uid, job_uid)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        os._exit(REFUSED)
    if isolation == "pidns":
        version_3 = struct.pack("Ii", 0x20080522, 0)
        if libc.capset(version_3, struct.pack("6I", 0, 0, 0, 0, 0, 0)) != 0:
            os._exit(REFUSED)
    # No core file, no tracing, nothing under /proc for others of its uid.
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def confine(isolation: str, job_uid: int, limits: dict[str, Any], folder: str) -> None:
    """In a child, before anything of the program runs: its own namespace, limits, then no identity and no rights."""
    if isolation == "pidns":
        _enter_pid_namespace()
    os.setsid()
    os.chdir(folder)
    cpu = max(1, int(limits["cpu_s"] + 0.999))
    for name, soft, hard in (
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(name, (soft, hard))
    if isolation != "none":
        # Where nothing separates this program's processes from the user's own, the user's own would count. An ordinary
        # user's sandbox has five of the same uid: its first process, the worker, and those of the program's namespace.
        processes = limits["processes"] + (5 if isolation == "pidns" else 0)
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    give_up_identity(isolation, job_uid)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of uid clears it, so after that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(0o077)
    install_seccomp()


def _enter_pid_namespace() -> None:
    """Becomes a process of a new PID namespace whose first process only waits and passes the exit status on."""
    if libc.unshare(CLONE_NEWPID) != 0:
        os._exit(REFUSED)
    for _ in range(2):  # this process forks the namespace's first process, and that forks the program's
        child = os.fork()
        if child:
            _pass_on(child)


def _pass_on(child: int) -> NoReturn:
    # The first process of a namespace ignores the signals of its children as long as it has no handler for them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.closerange(0, 64)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(128 - code if code < 0 else code)
