"""The settings of a run that is resumed, against those it was begun with."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compass.config import to_toml, write_resolved
from compass.errors import UserError
from compass.manifest import digest, write_whole

OF_THE_PROGRAM = frozenset({"resume", "run_dir"})
"""Fields that say nothing of the run itself."""

FIXED = {
    "seed": "prompts and sampling noise are drawn from it",
    "raw": "what was learned of each prompt was learned of it in the other form",
    "curriculum": "the walk through the prompts is in the middle of one of its stages",
    "zv.prefilter.evaluation": "its outcomes are in the history already",
    "optim.kind": "the moments are kept in its form",
    "optim.groups": "there are moments of what was trained, and of nothing else",
    "data.max_len": "the walk counts the examples it leaves",
    "data.drop_long": "the walk counts the examples it leaves",
    "data.last_turn_only": "the walk counts the examples it leaves",
    "data.shuffle": "the walk is in the middle of its order",
    "data.seed": "the walk is in the middle of its order",
}
"""Fields, or tables of fields, that a resumed run cannot change, and why. All others it can: they
steer what comes after (number of steps, learning rate, loss, batch and group sizes, intervals,
memory, parallelism), and no saved state depends on them."""

READ_ANEW = re.compile(r"data\.validation|eval\..*\.data")
"""Fields that name data of which no state is kept; all other data must be what it was."""


ROWS = "optim.groups."
"""Tables whose rows must all have been there; other fields may be new to a later version."""

OF_CODE = re.compile(r"loss|advantage\.fn|metric|gym\.rewards\..*\.fn")
"""Fields that name functions of the user's own: `config.toml` says which they were."""


class RunSettings:
    """Config and data of a run, saved in its checkpoints and compared when it is resumed.

    Args:
        contents: what each of these fields stands for: a file, or anything with a `repr`. Its
            content is what counts: a file may move, but must not change.
    """

    def __init__(self, cfg: Any, contents: Mapping[str, object], *, world_size: int) -> None:
        self._cfg = cfg
        self._digests = {name: _digest(content) for name, content in contents.items()}
        self._world_size = world_size
        self._earlier: str | None = None
        self.changes: list[str] = []
        """What is not as it was when the checkpoint was written: `name: old -> new`."""

    def state_dict(self) -> dict[str, Any]:
        """Everything to compare with; JSON values."""
        return {
            "config": to_toml(self._cfg),
            "contents": self._digests,
            "world_size": self._world_size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare with what a checkpoint holds.

        Raises:
            UserError: something changed that cannot.
        """
        self._earlier = state["config"]
        was = dict(_leaves(tomllib.loads(state["config"])))
        now = dict(_leaves(tomllib.loads(to_toml(self._cfg))))
        rows = {n for n in was.keys() ^ now.keys() if n.startswith(ROWS)}
        for name in [n for n in now if n in was and n not in OF_THE_PROGRAM] + sorted(rows):
            other_value = was.get(name) != now.get(name)
            other_content = state["contents"].get(name) != self._digests.get(name)
            if not (other_value or other_content):
                continue
            change = f"{name}: {was.get(name, 'none')} -> {now.get(name, 'none')}"
            if not other_value:
                change += " (another content)"
            why_fixed = _why_fixed(name)
            if other_content and not READ_ANEW.fullmatch(name) and not OF_CODE.fullmatch(name):
                why_fixed = "the run's state is of what that was"
            if why_fixed is not None:
                raise UserError(
                    f"{change}: a resumed run cannot change {name}, because {why_fixed}; set it "
                    "back, or start another run folder"
                )
            self.changes.append(change)
        if state["world_size"] != self._world_size:
            self.changes.append(f"ranks: {state['world_size']} -> {self._world_size}")

    def write(self, run_dir: Path, *, step: int) -> None:
        """Write `config.toml`; where it changed at `step`, the earlier one stays under that name.

        Raises:
            UserError: the folder cannot be written.
        """
        kept = run_dir / f"config.step_{step:06}.toml"
        if self.changes and self._earlier is not None and not kept.exists():
            write_whole(kept, self._earlier)
        files = {n: d for n, d in self._digests.items() if OF_CODE.fullmatch(n)}
        write_resolved(self._cfg, run_dir, digests=files)


def _digest(content: object) -> str:
    if isinstance(content, Path):
        return digest(content).sha256
    if isinstance(content, tuple):
        if len(content) == 1:
            return _digest(content[0])
        content = [_digest(item) for item in content]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _why_fixed(name: str) -> str | None:
    whys = (why for field, why in FIXED.items() if name == field or name.startswith(f"{field}."))
    return next(whys, None)


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every field."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
