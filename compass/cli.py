"""Exit codes of every command: 0 done, 2 the user's mistake, 1 ours or a run that came to no good,
128 and the signal's number for one that a signal ended before it was done."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import SIGPIPE

from compass.errors import FailedRunError, UserError

USER_MISTAKE = 2
"""Exit code of a `UserError`."""
FAILED = 1
"""Exit code of a `FailedRunError`, and of whatever is ours."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT."""


def one_line(error: UserError | FailedRunError) -> str:
    """What an error looks like on the console, whatever the message holds."""
    return f"error: {' '.join(str(error).split())}"


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """End quietly where who reads stdout has left, as in `compass rl --help | head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # it is flushed at the end
        raise SystemExit(128 + SIGPIPE) from None


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run `main`; a `UserError` becomes one line on stderr and exit code 2, Ctrl-C one and 130.

    Any other exception passes through: Python prints its traceback and exits with code 1.
    """
    try:
        with until_nobody_reads():
            main()
    except UserError as error:
        print(one_line(error), file=sys.stderr)
        raise SystemExit(USER_MISTAKE) from None
    except KeyboardInterrupt:
        print("stopped by SIGINT before it was done", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def note(message: str) -> None:
    """Say on stderr, in one line, what is no error but would surprise. For one rank to call."""
    print(f"note: {' '.join(message.split())}", file=sys.stderr, flush=True)
