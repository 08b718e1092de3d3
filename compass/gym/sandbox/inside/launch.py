"""The process that starts sandboxes: small, so that starting is quick, and the same for all of a
worker's, so that a change of user is made once. Programs never run in it, or see it."""

from __future__ import annotations

import json
import os
import signal
import socket

_CONTROL, _FILTER = 0, 9
"""File descriptors: the worker's socket here; in a sandbox, what bwrap reads the filter from."""
_MOST_BYTES = 1 << 20


def main() -> None:
    """Take the command and the filter of system calls (hex), then start it for every message, with
    the descriptor that comes along as its standard input. The answer is its process id, 0 if it
    cannot be started."""
    control = socket.socket(fileno=_CONTROL)
    command, filter_hex = json.loads(control.recv(_MOST_BYTES))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1, 1, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        pid = _started(command, fds[0], bytes.fromhex(filter_hex))
        control.send(pid.to_bytes(4, "big"))
        os.close(fds[0])


def _started(command: list[str], given: int, system_calls: bytes) -> int:
    readable, writable = os.pipe()
    os.write(writable, system_calls)
    os.close(writable)
    try:
        return os.posix_spawn(
            command[0],
            command,
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, given, 0),
                (os.POSIX_SPAWN_DUP2, readable, _FILTER),
            ],
            setpgroup=0,
            setsigdef=[signal.SIGCHLD],
        )
    except OSError:
        return 0
    finally:
        os.close(readable)


if __name__ == "__main__":
    main()
