"""The warm worker that runs inside the sandbox: it forks a child per program and reports how each one ended.

This file is not imported by mify: `sandbox_launch` passes its *text* to `python -c` inside the sandbox, so no file of
the harness exists there to be written to. It needs nothing but the standard library.

Protocol on stdin and stdout: four bytes of length (big-endian), then JSON. First comes a message of the worker's own,
{"ready": true}; then a job {"source", "limits"} is answered by {"status", "detail", "output", "seconds"}, or the worker ends
(and is replaced) because it could not clean up behind a program.

How a program is kept from the worker, by `isolation` (argv[1]):
  uid     the worker is uid 0 of the sandbox with CAP_SETUID and CAP_SETGID only, the program an unprivileged uid (argv[2]):
          it can neither signal, trace, nor limit the worker;
  pidns   an ordinary user has one uid only, so the program gets a PID namespace of its own (the worker holds CAP_SYS_ADMIN
          in its user namespace for that, the program holds nothing): it cannot even name the worker;
  none    no isolation: only where the user insisted.

How a verdict is kept honest: the program ends with `passed` only if its process exits with status 0 *and* has written, on a
pipe that only it and the worker hold, a random token that is made anew for every program and written after the last test
returned. An early `sys.exit(0)` or `os._exit(0)` has not written it. Program and tests share an interpreter here, so a program
that goes looking for the harness (frames, gc, ctypes) could find the token: `mify.eval.suspicion` spots programs that could,
and they must pass the two-process form as well.
"""

import ctypes
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import time
import types

ISOLATION = sys.argv[1]
JOB_UID = int(sys.argv[2])
SCRATCH = sys.argv[3]
PRELOAD = [name for name in sys.argv[4].split(",") if name]
PACKAGES_FOLDER = sys.argv[5]

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
CLONE_NEWPID = 0x20000000
KEPT_OUTPUT = 2000
libc = ctypes.CDLL(None, use_errno=True)


def serve():
    """Answers jobs until stdin closes. Ends the process where a program left something that could not be removed."""
    sys.path[:] = [entry for entry in sys.path if entry]
    if PACKAGES_FOLDER:
        sys.path.append(PACKAGES_FOLDER)
    for name in PRELOAD:
        __import__(name)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    send({"ready": True, "uid": os.getuid(), "python": sys.version.split()[0]})
    while (job := receive()) is not None:
        send(run_program(job))
        if not cleaned():
            sys.exit(3)


def run_program(job):
    """Forks a child for one program, watches it, and says how it ended."""
    limits = job["limits"]
    complete_read, complete_write = os.pipe2(os.O_CLOEXEC)
    output_read, output_write = os.pipe2(os.O_CLOEXEC)
    token = os.urandom(16).hex().encode()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.close(0)
            os.open(os.devnull, os.O_RDONLY)
            os.dup2(output_write, 1)
            os.dup2(output_write, 2)
            os.dup2(complete_write, 3)
            os.closerange(4, 256)
            confine(limits)
            execute(job["source"], token)
        finally:
            os._exit(70)
    os.close(complete_write)
    os.close(output_write)
    status = "timeout"
    output, written, completion = b"", 0, b""
    handle = os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (handle, output_read, complete_read):
        os.set_blocking(descriptor, False)
        poll.register(descriptor, select.POLLIN)
    deadline = started + limits["wall_s"]
    ended = False
    while not ended and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            if descriptor == handle:
                ended = True
                continue
            data = read_available(descriptor)
            if not data:
                poll.unregister(descriptor)
            elif descriptor == output_read:
                written += len(data)
                output += data[: KEPT_OUTPUT - len(output)]
            else:
                completion += data
        if written > limits["output_bytes"] or len(completion) > 65536:
            status = "output"
            break
    seconds = time.monotonic() - started
    if not ended:
        kill(child)
    _, wait_status = os.waitpid(child, 0)
    if ended:
        completion += drain(complete_read)
        rest = drain(output_read)
        written += len(rest)
        output += rest[: KEPT_OUTPUT - len(output)]
        status = "output" if written > limits["output_bytes"] else "ended"
    for descriptor in (handle, output_read, complete_read):
        os.close(descriptor)
    detail = ""
    if status == "ended":
        status, detail = judge(os.waitstatus_to_exitcode(wait_status), completion, token)
    elif status == "timeout":
        detail = f"over {limits['wall_s']:g} s"
    else:
        detail = f"over {limits['output_bytes']} bytes of output"
    return {
        "status": status,
        "detail": detail,
        "output": output.decode("utf-8", "replace"),
        "seconds": round(seconds, 4),
    }


def judge(exit_code, completion, token):
    """The verdict from what cannot be forged: the exit status, and the token on the completion pipe."""
    if exit_code == 0 and completion == token:
        return "passed", ""
    if exit_code in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        return "timeout", "over the CPU limit"
    if exit_code < 0:
        return "crashed", f"signal {-exit_code}"
    if exit_code > 128 and not completion:
        return "crashed", f"signal {exit_code - 128}"
    if exit_code == 1 and completion.startswith(b"error "):
        text = completion[6:].decode("utf-8", "replace")
        return ("memory" if text.startswith("MemoryError") else "failed"), text
    if not completion:
        return "exited", f"ended with status {exit_code} before its tests did"
    return "forged", "wrote to the verdict's pipe"


def confine(limits):
    """In the child: limits, then no identity and no capability. Nothing is run before all of it has worked."""
    if ISOLATION == "pidns":
        enter_pid_namespace()
    os.setsid()
    os.chdir(SCRATCH)
    cpu = max(1, int(limits["cpu_s"] + 0.999))
    for name, value, hard in (
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(name, (value, hard))
    if ISOLATION != "none":
        # Where nothing separates this program's processes from the user's own, the user's own would count.
        resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))
    drop_identity()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of uid clears it, so after that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(0o077)


def drop_identity():
    """No capability, no way to gain one; in `uid` isolation, another uid too."""
    if ISOLATION == "uid":
        os.setgroups([])
        os.setresgid(JOB_UID, JOB_UID, JOB_UID)
        os.setresuid(JOB_UID, JOB_UID, JOB_UID)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        os._exit(71)
    if ISOLATION == "pidns":
        header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
        if libc.capset(header, struct.pack("6I", 0, 0, 0, 0, 0, 0)) != 0:
            os._exit(71)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def enter_pid_namespace():
    """Becomes a process of a new PID namespace whose first process only waits and passes the exit status on."""
    if libc.unshare(CLONE_NEWPID) != 0:
        os._exit(71)
    for _ in range(2):  # this process forks the namespace's first process, and that forks the program's
        child = os.fork()
        if child:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.closerange(0, 4)
            while True:
                ended, wait_status = os.waitpid(-1, 0)
                if ended == child:
                    code = os.waitstatus_to_exitcode(wait_status)
                    os._exit(128 - code if code < 0 else code)


def execute(source, token):
    """Runs program and tests in a fresh module; tells the worker of the end, or of the exception. Never returns."""
    random.seed(0)
    os.environ.clear()
    os.environ.update({"HOME": SCRATCH, "TMPDIR": SCRATCH, "PATH": "/usr/bin:/bin"})
    module = types.ModuleType("program")
    sys.modules["program"] = sys.modules["__main__"] = module
    write, leave = os.write, os._exit
    try:
        exec(compile(source, "<program>", "exec"), module.__dict__)
    except BaseException as error:
        text = type(error).__name__
        try:
            text += f": {error}"
        except BaseException:
            text += ": (its message cannot be shown)"
        try:
            sys.stdout.flush()
        finally:
            write(3, b"error " + text.encode("utf-8", "replace")[:500])
            leave(1)
    try:
        sys.stdout.flush()
    finally:
        write(3, token)
        leave(0)


def kill(child):
    """Ends a program that ran over: its own process at once, what it started in `cleaned`."""
    if ISOLATION == "none":
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if ISOLATION == "uid":
        kill_all_of_uid()
    elif ISOLATION == "pidns":
        os.kill(-1, signal.SIGKILL)  # all but this process and the sandbox's first
    try:
        os.kill(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def kill_all_of_uid():
    """kill(-1) as the program's uid, from a child: this process has no capability to signal another uid."""
    helper = os.fork()
    if helper == 0:
        try:
            drop_identity()
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(helper, 0)


def cleaned():
    """True when no process and no file of the last program is left, and none of its shared memory."""
    if ISOLATION == "none":
        wipe()
        return True
    deadline = time.monotonic() + 5
    first = True
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)  # orphans come here: this process is their subreaper
        except ChildProcessError:
            break
        if ended == 0:
            if time.monotonic() > deadline:
                return False
            if ISOLATION == "uid":
                kill_all_of_uid()
            else:
                os.kill(-1, signal.SIGKILL)
            if not first:
                time.sleep(0.005)
            first = False
    if os.listdir(SCRATCH):
        helper = os.fork()
        if helper == 0:
            try:
                signal.alarm(5)
                drop_identity()
                wipe()
            finally:
                os._exit(0)
        os.waitpid(helper, 0)
        if os.listdir(SCRATCH):
            return False
    return not left_in_ipc()


def wipe():
    os.chdir(SCRATCH)
    for name in os.listdir("."):
        if os.path.isdir(name) and not os.path.islink(name):
            os.chmod(name, 0o700)
            for folder, folders, _ in os.walk(name):
                for inner in folders:
                    if not os.path.islink(os.path.join(folder, inner)):
                        os.chmod(os.path.join(folder, inner), 0o700)
            shutil.rmtree(name, ignore_errors=True)
        else:
            os.unlink(name)


def left_in_ipc():
    """True where the program left System V shared memory, queues or semaphores: they outlive processes."""
    buffer = ctypes.create_string_buffer(256)
    shm_info, msg_info, sem_info = 14, 12, 19
    # shm_info.used_ids, msginfo.msgpool and seminfo.semusz count what exists (shmctl(2), msgctl(2), semctl(2)).
    if libc.shmctl(0, shm_info, buffer) >= 0 and struct.unpack_from("i", buffer)[0] > 0:
        return True
    if libc.msgctl(0, msg_info, buffer) >= 0 and struct.unpack_from("i", buffer)[0] > 0:
        return True
    return libc.semctl(0, 0, sem_info, buffer) >= 0 and struct.unpack_from("8i", buffer)[7] > 0


def read_available(descriptor):
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b""


def drain(descriptor):
    data = b""
    while len(data) < 1 << 20 and (piece := read_available(descriptor)):
        data += piece
    return data


def receive():
    header = read_exactly(4)
    if header is None:
        return None
    body = read_exactly(struct.unpack(">I", header)[0])
    return None if body is None else json.loads(body)


def read_exactly(count):
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            return None
        data += piece
    return data


def send(message):
    body = json.dumps(message).encode()
    data = struct.pack(">I", len(body)) + body
    while data:
        data = data[os.write(1, data) :]


serve()
