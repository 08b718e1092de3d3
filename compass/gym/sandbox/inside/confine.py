"""What a sandbox without namespaces does to itself."""

from __future__ import annotations

import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def confine(readable: Sequence[str]) -> None:
    """Die with the parent, and open nothing but these trees from here on; all, if there are none.

    Errors: `landlock.LandlockError` where the kernel has no Landlock.
    """
    die_with_parent()
    if readable:
        restrict_files(readable)


def die_with_parent() -> None:
    """End this process when the one that started it ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def restrict_files(readable: Sequence[str]) -> None:
    """Open nothing but these trees, to read, and a few devices. Errors: as of `confine`."""
    import landlock

    access = landlock.FSAccess
    rules = landlock.Ruleset()
    rules.allow(*readable, rules=access.READ_FILE | access.READ_DIR | access.EXECUTE)
    rules.allow(*_DEVICES, rules=access.READ_FILE | access.WRITE_FILE)
    rules.apply()
