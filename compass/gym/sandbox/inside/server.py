"""The first process of a sandbox: it takes one program and forks for each of its tests.

It starts in a few milliseconds because it imports almost nothing, and a test costs a fork instead
of an interpreter: the program is compiled, and what it imports of the standard library is imported,
once. It has nothing to steal and is not believed: expected outputs never enter the sandbox.

Frames, both ways over one socket: a byte that says what it is, four of length, the content.
"""

from __future__ import annotations

import builtins
import gc
import marshal
import posix
import sys

TYPE_CHECKING = False  # importing it from typing would take as long as everything else here
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import CodeType, ModuleType
    from typing import Any, NoReturn

HELLO, PROGRAM, STDIN, SERVE, TEST = b"H", b"P", b"I", b"S", b"T"
"""From the server: started. To it: here is the program; run it on an input; load it and answer
calls; run it as a test whose calls are answered by another sandbox."""
READY, CALL, END = b"R", b"C", b"E"
"""The program is loaded; a call and its arguments; there are no more calls."""
VALUE, RAISED, FOREIGN = b"V", b"X", b"F"
"""What a call came to: a value, an exception, something that cannot cross."""
DONE, TROUBLE = b"D", b"!"
"""From the server: the process of a test is gone (`ending`); there could not be one."""

_PACKAGE = "compass.gym.sandbox.inside"
CHANNEL = 3
"""File descriptor of the socket."""
FAILED = 1
"""Exit code of a program that raised."""
_NOTE_BYTES = 400
_BLOCK = 1 << 20
_SIGKILL = 9
_WITH_EFFECTS = frozenset({"this", "antigravity", "idlelib", "turtledemo", "turtle"})


def send(kind: bytes, content: bytes = b"") -> None:
    """Write one frame."""
    _write(CHANNEL, kind + len(content).to_bytes(4, "big") + content)


def receive() -> tuple[bytes, bytes]:
    """Read one frame. The process ends when there is nobody to send any more."""
    head = _read(5)
    return head[:1], _read(int.from_bytes(head[1:], "big"))


def _read(size: int) -> bytes:
    parts = []
    while size:
        part = posix.read(CHANNEL, min(size, _BLOCK))
        if not part:
            posix._exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[posix.write(fd, view) :]


def start(server: ModuleType, opening: Mapping[str, Any]) -> None:
    """Make this package importable, confine the process, and serve.

    `opening`: `modules`, this package's files, marshalled; `limits`, by the names of `resource`;
    `path`, where installed packages are; `confine`, see there; None where namespaces do it.
    """
    package = type(sys)(_PACKAGE)
    sys.modules |= {_PACKAGE: package, f"{_PACKAGE}.server": server}
    sys.path.append(opening["path"])
    package.__dict__.update(server=server, modules=opening["modules"])
    if opening["confine"] is not None:
        loaded("confine").confine(opening["confine"])
    _introduce()
    _limit(opening["limits"], "AS", "NPROC", "NOFILE", "CORE")
    serve(opening["limits"])


def _introduce() -> None:
    """HELLO, and a handle of this process with it: its number means nothing outside."""
    import _socket

    handle = posix.pidfd_open(posix.getpid(), 0)
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, handle.to_bytes(4, sys.byteorder))
    channel = _socket.socket(fileno=posix.dup(CHANNEL))
    channel.sendmsg([HELLO], [rights])
    channel.close()
    posix.close(handle)


def serve(limits: Mapping[str, int]) -> None:
    """Answer frames until the socket closes."""
    gc.disable()  # nothing here is garbage, and looking for it would copy what tests share
    program: CodeType | bytes = b"there is no program"
    while True:
        kind, content = receive()
        if kind == PROGRAM:
            program = _compiled(content)
        elif isinstance(program, bytes):
            send(DONE, ending(FAILED, program, b""))
        elif kind == STDIN:
            send(*_forked(_as_script, program, content, limits))
        else:
            loaded("literals")
            calls = loaded("calls")
            run = calls.answer_calls if kind == SERVE else calls.make_calls
            send(*_forked(run, program, content, limits))


def loaded(name: str) -> Any:
    """A further file of this package, executed at its first use."""
    package = sys.modules[_PACKAGE]
    full = f"{_PACKAGE}.{name}"
    if full not in sys.modules:
        sys.modules[full] = package.__dict__[name] = type(sys)(full)
        exec(marshal.loads(package.modules[name]), sys.modules[full].__dict__)
    return sys.modules[full]


def ending(code: int, note: bytes, output: bytes) -> bytes:
    """How a test's process ended: its exit code (minus the signal, if one killed it), the last of
    what it wrote to stderr, and what it wrote to stdout."""
    note = note[-_NOTE_BYTES:]
    return code.to_bytes(4, "big", signed=True) + len(note).to_bytes(2, "big") + note + output


def _limit(limits: Mapping[str, int], *names: str) -> None:
    import resource

    for name in names:
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = limits[name] if hard == resource.RLIM_INFINITY else min(limits[name], hard)
        resource.setrlimit(which, (value, value))


def _compiled(source: bytes) -> CodeType | bytes:
    """The program's code, or why there is none. What it imports is imported here."""
    try:
        code = compile(source, "<program>", "exec", dont_inherit=True)
    except Exception as error:
        return _described(error)
    _import_ahead(source)
    return code


def _import_ahead(source: bytes) -> None:
    """Import what lines say is imported of the standard library, once for all tests. A name that is
    not there is for the program to stumble on; one too many does no harm."""
    for line in source.decode("utf-8", "replace").split("\n"):
        keyword, _, rest = line.partition(" ")
        if keyword not in ("import", "from"):
            continue
        for part in rest.split(",") if keyword == "import" else [rest]:
            name = part.split()[0] if part.split() else ""
            root = name.partition(".")[0]
            if root in sys.stdlib_module_names and root not in _WITH_EFFECTS:
                _import_if_there(name)


def _import_if_there(name: str) -> None:
    try:
        __import__(name)
    except (Exception, SystemExit):
        return  # the program will see for itself


def _forked(
    run: Callable[[CodeType], None], program: CodeType, given: bytes, limits: Mapping[str, int]
) -> tuple[bytes, bytes]:
    """Run the program on `given` in a process of its own; the frame that says how that ended."""
    files = [posix.memfd_create("given"), posix.memfd_create("out"), posix.memfd_create("err")]
    _write(files[0], given)
    posix.lseek(files[0], 0, 0)
    gc.freeze()
    try:
        pid = posix.fork()
    except OSError as error:
        return TROUBLE, _described(error)
    if pid == 0:
        try:
            _enter(files, limits)
            run(program)
        finally:
            posix._exit(FAILED)
    code = posix.waitstatus_to_exitcode(posix.waitpid(pid, 0)[1])
    _sweep()
    note, output = _content(files[2], limits["FSIZE"]), _content(files[1], limits["FSIZE"])
    for file in files:
        posix.close(file)
    return DONE, ending(code, note, output)


def _enter(files: Sequence[int], limits: Mapping[str, int]) -> None:
    """Give this new process its own input, output and limits. The streams that Python made of the
    descriptors have not been used yet."""
    gc.enable()
    for fd, file in enumerate(files):
        posix.dup2(file, fd)
        posix.close(file)
    if posix.getppid() != 1:
        loaded("confine").die_with_parent()
    _limit(limits, "CPU", "FSIZE")
    sys.argv = ["program.py"]
    builtins.__dict__.update(exit=sys.exit, quit=sys.exit)  # as in an interpreter with `site`


def _sweep() -> None:
    """End whatever the test has left running. Signal -1 spares who sends it; in a process
    namespace nobody else is there but what the program started."""
    if posix.getpid() != 1:
        return  # not in a namespace of its own: the group is killed with the sandbox
    try:
        posix.kill(-1, _SIGKILL)
        while True:
            posix.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _content(file: int, most: int) -> bytes:
    size = min(posix.fstat(file).st_size, most)
    parts, at = [], 0
    while at < size and (part := posix.pread(file, min(size - at, _BLOCK), at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _as_script(program: CodeType) -> None:
    posix.close(CHANNEL)
    leave(lambda: execute(program, "__main__"))


def execute(program: CodeType, name: str) -> dict[str, Any]:
    """Run the program as a module of that name; its names."""
    module = type(sys)(name)
    sys.modules[name] = module
    exec(program, module.__dict__)
    return module.__dict__


def leave(action: Callable[[], object]) -> NoReturn:
    """Do it and end the process as an interpreter would, but without tearing it down."""
    code = _code_of(action) or _code_of(_finish)
    posix._exit(code)


def _code_of(action: Callable[[], object]) -> int:
    try:
        action()
    except SystemExit as exit:
        if exit.code is None or isinstance(exit.code, int):
            return (exit.code or 0) & 0xFF
        _write(2, str(exit.code).encode("utf-8", "replace"))
        return FAILED
    except BaseException as error:
        _write(2, _described(error))
        return FAILED
    return 0


def _finish() -> None:
    if threading := sys.modules.get("threading"):
        threading._shutdown()
    if atexit := sys.modules.get("atexit"):
        atexit._run_exitfuncs()
    sys.stdout.flush()


def _described(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {error}"[:_NOTE_BYTES].encode("utf-8", "replace")
