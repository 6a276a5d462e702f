"""Programs that attack the harness, shared by the tests of every way to confine them. Only the standard library."""

from __future__ import annotations

TESTS = "assert add(1, 2) == 3\nassert add(5, 5) == 10"
WRONG = "def add(a, b):\n    return 0\n"
RIGHT = "def add(a, b):\n    return a + b\n"

# (source, status): how a program ends that does not end as it should.
ENDS = [
    ("import sys\nsys.exit(0)", "failed"),
    ("raise SystemExit(0)", "failed"),
    ("import os\nos._exit(0)", "exited"),
    (WRONG + "import atexit, os\natexit.register(os._exit, 0)", "failed"),
    ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "crashed"),
    ("while True:\n    pass", "timeout"),
    ("import time\ntime.sleep(60)", "timeout"),
    ("import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
     "    except OSError: pass\nwhile True: pass", "timeout"),
    ("x = bytearray(1 << 30)", "memory"),
    ("x = []\nwhile True:\n    x.append(bytearray(1 << 20))", "memory"),
    ("print('x' * (3 << 20))\n" + RIGHT, "output"),
    ("while True:\n    print('x' * 1000)", "output"),
    ("import os\nwhile True:\n    os.write(2, b'x' * 65536)", "output"),
    ("def f():\n    f()\nf()", "failed"),
    ("import sys\nsys.setrecursionlimit(10**9)\nlen(eval('-' * 10**6 + '1'))", "memory"),
    ("x = (" * 10000, "failed"),
    ("\0", "failed"),
]  # fmt: skip

# Ways to claim a pass with a wrong solution.
FORGERIES = {
    "every descriptor": "import os\nfor fd in range(64):\n    try: os.write(fd, b'passed')\n    except OSError: pass\n"
    "os._exit(0)",
    "verdict on stdout": "print('passed', flush=True)\nimport os\nos._exit(0)",
    "frames": "import sys, os\nframe = sys._getframe()\nwhile frame:\n    for value in list(frame.f_locals.values()):\n"
    "        if isinstance(value, bytes) and len(value) == 32:\n            os.write(3, value)\n"
    "            os._exit(0)\n    frame = frame.f_back",
    "traceback": "try:\n    1 / 0\nexcept Exception as e:\n    frame = e.__traceback__.tb_frame\nwhile frame:\n"
    "    for value in list(frame.f_locals.values()):\n        if isinstance(value, bytes) and len(value) == 32:\n"
    "            import os\n            os.write(3, value)\n            os._exit(0)\n    frame = frame.f_back",
    "generator frame": "def g():\n    yield\nx = g()\nnext(x)\nf = getattr(x, 'gi_' + 'frame')\n" + WRONG,
    "garbage collector": "import gc, os\nfor thing in gc.get_objects():\n    if callable(thing):\n"
    "        for cell in getattr(thing, '__closure__', None) or ():\n            try: value = cell.cell_contents\n"
    "            except ValueError: continue\n            if isinstance(value, bytes) and len(value) == 32:\n"
    "                os.write(3, value)\n                os._exit(0)",
    "harness's own function": "import sys\nf = sys._getframe()\nwhile f.f_back:\n    f = f.f_back\n"
    "for name in dir(f):\n    pass\nimport os\nos._exit(0)",
    "equal to everything": "class Any:\n    def __eq__(self, other):\n        return True\n"
    "def add(a, b):\n    return Any()",
    "equal to everything, by type()": "A = type('A', (int,), {'_'*2 + 'eq' + '_'*2: lambda s, o: True})\n"
    "def add(a, b):\n    return A(0)",
    "subclass of int": "class I(int):\n    def __eq__(self, other):\n        return True\n"
    "def add(a, b):\n    return I(0)",
    "mock": "from unittest.mock import ANY\ndef add(a, b):\n    return ANY",
    "builtins replaced": "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\n" + WRONG,
    "tracing": "import sys\nsys.settrace(lambda *a: None)\n" + WRONG,
    "another module": "import sys\nclass F:\n    pass\nsys.modules['program'] = F\n" + WRONG,
    "the child goes on": "import os\nif os.fork():\n    os._exit(0)\n" + WRONG,
    "exit in a thread": "import threading, os, time\n"
    + WRONG
    + "threading.Thread(target=lambda: os._exit(0)).start()\ntime.sleep(1)",
}

# Statements that must not succeed.
ESCAPES = [
    "open('/usr/mify-hostile', 'w')",
    "open('/mify-hostile', 'w')",
    "open('/dev/mify-hostile', 'w')",
    "open('/etc/hostname')",
    "open('/dev/shm/x', 'w')",
    "__import__('os').listdir('/home')",
    "open('/etc/passwd').read()",
    "open('/etc/shadow').read()",
    "__import__('os').listdir('/proc')",
    "__import__('os').listdir('/sys')",
    "open('/dev/sda').read(1)",
    "__import__('os').mknod('/tmp/disk', 0o60666, 0x0100)",
    "__import__('os').setuid(0) or __import__('os').setuid(1)",
    "__import__('os').chroot('/tmp')",
    "__import__('os').kill(1, 9) or __import__('os').kill(1, 0) or _",
    "__import__('ctypes').CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) + 1 or _",
    "__import__('ctypes').CDLL(None).unshare(0x10000000) + 1 or _",
    "__import__('ctypes').CDLL(None).ptrace(16, 1, 0, 0) + 1 or _",
    "__import__('ctypes').CDLL(None).shmget(0, 1 << 30, 0o1600) + 1 or _",
    "__import__('subprocess').run(['su', '-c', 'id'], check=True)",
]
