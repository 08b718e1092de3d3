"""Programs that attack what judges them. Not a test.

Each is asked for a secret that it can only write if the attack works, or for `square(7)`; so one
that passes has broken out. `{outside}` is a folder of ours with `secret.txt`, `{port}` a socket
that listens, `{parent}` a process of ours.
"""

from __future__ import annotations

FLOODS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fork bomb that goes quiet": (
        "import os, time\ntry:\n    while os.fork() or True: pass\nexcept OSError: time.sleep(99)"
    ),
    "thread bomb": (
        "import threading, time\n"
        "def f(): time.sleep(99)\n"
        "while True:\n    try: threading.Thread(target=f).start()\n    except RuntimeError: pass"
    ),
    "memory bomb": "x = []\nwhile True: x.append(bytearray(10**7))",
    "memory bomb that holds on": (
        "x = []\nwhile True:\n    try: x.append(bytearray(10**7))\n    except MemoryError: pass"
    ),
    "memory bomb in many processes": (
        "import os\nx = []\n"
        "for _ in range(99):\n    try: os.fork()\n    except OSError: break\n"
        "while True:\n    try: x.append(bytearray(10**7))\n    except MemoryError: pass"
    ),
    "file bomb": (
        "n = 0\n"
        "while True:\n    n += 1\n"
        "    try: open(f'/tmp/{n}', 'wb').write(bytes(10**8))\n    except OSError: pass"
    ),
    "endless output": "while True: print('x' * 10**6)",
    "endless output that holds on": (
        "import os\nwhile True:\n    try: os.write(1, b'x' * 10**6)\n    except OSError: pass"
    ),
    "endless errors": "import sys\nwhile True: sys.stderr.write('x' * 10**6)",
    "sleep": "import time\ntime.sleep(99)",
    "an event that never comes": "import threading\nthreading.Event().wait()",
    "signals ignored": (
        "import signal\n"
        "for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    signal.signal(s, signal.SIG_IGN)\n"
        "while True: pass"
    ),
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "recursion in C": "x = None\nfor _ in range(10**6): x = [x]\nrepr(x)",
}
"""They take all they can; none of them answers."""

DAEMONS = {
    "daemon": (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(999)\n"
        "    os._exit(0)\n"
        "print('nothing')"
    ),
    "daemon that hides": (
        "import os, signal, time\n"
        "for s in range(1, 64):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "for _ in range(3):\n    if os.fork() == 0:\n        os.setsid(); os.closerange(0, 64)\n"
        "        while True: time.sleep(9)\n"
    ),
    "chain of forks": "import os\nwhile True:\n    if os.fork(): os._exit(0)",
}
"""They leave something running."""

READERS = {
    "a file outside": "print(open('{outside}/secret.txt').read())",
    "a file outside through a link": (
        "import os\nos.symlink('{outside}/secret.txt', '/tmp/l')\nprint(open('/tmp/l').read())"
    ),
    "a file outside through /proc/1/root": "print(open('/proc/1/root{outside}/secret.txt').read())",
    "a file outside through an open folder": (
        "import os\n"
        "for fd in range(64):\n"
        "    for name in ('{outside}/secret.txt'[1:], '../' * 20 + '{outside}/secret.txt'[1:]):\n"
        "        try: print(os.read(os.open(name, 0, dir_fd=fd), 99).decode())\n"
        "        except (OSError, OverflowError): pass"
    ),
    "the files of another process": (
        "import os\n"
        "for pid in ['self', 'thread-self', *range(1, 99), {parent}]:\n"
        "    for n in range(64):\n"
        "        try: print(os.read(os.open('/proc/%s/fd/%s' % (pid, n), 0), 99).decode())\n"
        "        except OSError: pass"
    ),
    "the parent's environment": (
        "print(open('/proc/{parent}/environ').read().split('SECRET=')[1][:9])"
    ),
    "its environment": "import os\nprint(os.environ['SECRET'])",
    "its environment as it was": "print(open('/proc/self/environ').read().split('SECRET=')[1][:9])",
    "the parent's command line": "print(open('/proc/{parent}/cmdline').read())",
    "a mount of its own": (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None)\n"
        "print(libc.unshare(0x10020000), libc.mount(b'proc', b'/tmp', b'proc', 0, None))\n"
        "print(open('/tmp/{parent}/root{outside}/secret.txt').read())"
    ),
    "a socket": (
        "import socket\nprint(socket.create_connection(('127.0.0.1', {port}), 1).recv(9).decode())"
    ),
    "an abstract socket": (
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0compass-{port}')\n"
        "print(s.recv(9).decode())"
    ),
    "the tester's memory": (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "print([libc.ptrace(16, pid, 0, 0) for pid in (1, {parent})])\nopen('/proc/1/mem')"
    ),
    "a system call": (
        "import ctypes\nbuffer = ctypes.create_string_buffer(64)\n"
        "ctypes.CDLL(None).syscall(310, {parent}, 0, 0, 0, 0, 0)\nprint(buffer.raw)"
    ),
}
"""They write the secret if they can get at it."""

WRITERS = {
    "writes outside": "open('{outside}/written', 'w').write('x')",
    "writes beside itself": "import os\nopen(os.__file__ + '.written', 'w')",
    "writes among the packages": "import sys\nopen(sys.path[-1] + '/written.pth', 'w')",
    "writes through a link": (
        "import os\nos.symlink('{outside}', '/tmp/l')\nopen('/tmp/l/written', 'w').write('x')"
    ),
    "removes": "import os\nos.remove('{outside}/secret.txt')",
    "renames": "import os\nos.rename('{outside}/secret.txt', '{outside}/written')",
    "makes a device": "import os\nos.mknod('/tmp/d', 0o60600, os.makedev(254, 0))\nopen('/tmp/d')",
    "leaves a root": "import os\nos.mkdir('/tmp/r')\nos.chroot('/tmp/r')\nos.chdir('../' * 20)",
    "kills everything": "import os\nos.kill(-1, 9)",
    "kills by number": (
        "import os\n"
        "for pid in [{parent}, *range(1, 40000)]:\n"
        "    try: pid == os.getpid() or os.kill(pid, 9)\n    except OSError: pass"
    ),
    "kills groups": (
        "import os\n"
        "for pid in [{parent}, 1, 0]:\n    try: os.killpg(pid, 9)\n    except OSError: pass"
    ),
}
"""They would change or end something of ours."""

FORGERS = {
    "a verdict on stdout": "print('PASSED'); print('verdict: 1.0'); print(1.0)",
    "a frame on stdout": "import os\nos.write(1, b'D' + bytes(16))",
    "frames on every descriptor": (
        "import os\nframe = b'D' + (8).to_bytes(4, 'big') + bytes(6) + b'49'\n"
        "for fd in range(64):\n    try: os.write(fd, frame * 9)\n    except OSError: pass"
    ),
    "trouble of the machine": "import os\nwhile True: os.write(3, b'!' + bytes(4))",
    "exit": "import sys\nsys.exit(0)",
    "hard exit": "import os\nos._exit(0)",
    "always equal": (
        "class Yes(int):\n"
        "    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = lambda *_: True\n"
        "    __hash__ = int.__hash__\n    __repr__ = lambda _: '49'\n"
        "def square(x): return Yes()\nprint(Yes())if 0 else None"
    ),
    "no value but an object": (
        "class square:\n    def __init__(self, x): pass\n    __eq__ = lambda *_: True"
    ),
    "patched assert": (
        "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {{}})\n"
        "def square(x): raise builtins.AssertionError"
    ),
    "patched built-ins": (
        "import builtins, json\n"
        "for name in ('int', 'list', 'isinstance', 'type', 'exec', 'compile'):\n"
        "    setattr(builtins, name, lambda *a, **k: True)\njson.dumps = lambda _: '49.5'\n"
        "def square(x): return 1"
    ),
    "patched encoder": (
        "import sys\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('compass'):\n"
        "        for key in list(vars(module)):\n"
        "            if callable(vars(module)[key]): vars(module)[key] = lambda *a, **k: b'1'\n"
        "def square(x): return 1"
    ),
    "null bytes": "print(49)\0",
    "5,000 brackets": "(" * 5000 + ")" * 5000,
    "5,000 nots": "not " * 100_000 + "1",
    "a surrogate": "print('\ud800')",
    "no text": "\x00\x01\x02\ufeff",
    "an endless literal": "x = 9**9**9",
}
"""They would have the wrong thing taken for right, or upset whoever reads them."""
