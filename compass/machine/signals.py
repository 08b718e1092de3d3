"""SIGTERM and SIGINT: a program is asked to end, once politely and once more."""

from __future__ import annotations

import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
REPEAT_SECONDS = 0.2
"""What follows the first signal so soon is the same one: launchers pass on what a process group has
from the terminal already."""


class StoppedBySignal(BaseException):
    """The program was asked to end and has let go of what it was doing. The message is one line."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code
        """What the process is to exit with."""


class SignalWatch:
    """Answers SIGTERM and SIGINT while the block runs; the main thread's alone.

    Python runs a handler between two bytecodes of the main thread, so never while that waits in a
    collective. The number of the signal, though, is written to a socket at once, and a thread reads
    it. The thread ends the process at a second signal, or when patience is over.

    Args:
        react: called in the main thread at the first signal; may raise.
        leave: called in the thread, to end the process; True when a second signal came.
        patience_seconds: how long the block may go on after the first signal.
    """

    def __init__(
        self,
        *,
        react: Callable[[signal.Signals], None],
        leave: Callable[[signal.Signals, bool], None],
        patience_seconds: float,
    ) -> None:
        self._react = react
        self._leave = leave
        self._patience = patience_seconds
        self._first: tuple[signal.Signals, float] | None = None
        """The first signal and the monotonic time it came at."""
        self._handled = False

    @property
    def seconds_left(self) -> float | None:
        """Of patience; None before a signal."""
        return None if self._first is None else self._first[1] + self._patience - time.monotonic()

    def join(self) -> None:
        """Wait until patience is over, which ends the process."""
        self._thread.join()

    def __enter__(self) -> Self:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        self._previous_fd = signal.set_wakeup_fd(self._sender.fileno())
        self._previous: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._handle) for number in SIGNALS
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._sender.send(b"\0")
        self._thread.join()
        self._sender.close()
        self._receiver.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._handled:
            self._handled = True
            self._react(signal.Signals(number))

    def _watch(self) -> None:
        while True:
            left = self.seconds_left
            ready, _, _ = select.select(
                [self._receiver], [], [], None if left is None else max(0.0, left)
            )
            if not ready:
                assert self._first is not None
                self._leave(self._first[0], False)
                return
            for number in self._receiver.recv(64):
                if number == 0:
                    return
                if number in SIGNALS:
                    self._note(signal.Signals(number))

    def _note(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (number, now)
        elif now - self._first[1] >= REPEAT_SECONDS:
            self._leave(number, True)
