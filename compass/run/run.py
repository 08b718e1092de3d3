"""A training run: from which step, in which folder, until when."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import Protocol, Self

import torch

from compass.checkpoint.checkpointer import Checkpointer, Stateful, restore
from compass.checkpoint.config import CheckpointConfig
from compass.checkpoint.folder import FOLDER, step_folders
from compass.distributed import Topology, exit_at_once, raised_together
from compass.errors import FailedRunError, UserError
from compass.machine.signals import SignalWatch, StoppedBySignal
from compass.metrics import MetricsLogger
from compass.models.config import ExportConfig, PolicyConfig
from compass.models.hf.save import check_export, model_files, save_hf
from compass.models.load import dtype_of
from compass.models.policy import Policy
from compass.run.banner import Data, banner
from compass.run.health import RunHealth
from compass.run.settings import RunSettings
from compass.text.tokenizer import Tokenizer

SECONDS_BETWEEN_RANKS = 2.0
"""Ranks that are out of patience leave within this: what the first one breaks by leaving is no
error of the others."""


class RunConfig(Protocol):
    """What the config of every training recipe has."""

    @property
    def run_dir(self) -> Path: ...

    @property
    def resume(self) -> bool: ...

    @property
    def num_steps(self) -> int: ...

    @property
    def model(self) -> str: ...

    @property
    def policy(self) -> PolicyConfig: ...

    @property
    def checkpoint(self) -> CheckpointConfig: ...

    @property
    def export(self) -> ExportConfig: ...


class Run:
    """Goes on from the newest checkpoint, saves others, logs, and says when it is over.

    It ends after its last step, with a spent budget, at a signal, or when nothing is learned:

        with Run(...) as run:
            for step in run.steps():
                ...
                run.end_step(step, ...)
                if run.must_save(step):
                    run.save(step)
                if run.must_export(step):
                    run.export(step)
                run.log(step, metrics)
            if run.must_leave_model:
                run.leave_model()

    Every method is collective, except that `log` writes on one rank.
    """

    def __init__(
        self,
        cfg: RunConfig,
        topology: Topology,
        policy: Policy,
        tokenizer: Tokenizer,
        optimizer: torch.optim.Optimizer,
        states: Mapping[str, Stateful],
        *,
        data: Data,
        contents: Mapping[str, object],
        is_spent: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            states: the parts of the run that go on where they were.
            data: what it learns from, for the banner.
            contents: what fields stand for (`RunSettings`), beside `model` and `tokenizer`.
            is_spent: whether a budget is used up; the same on every rank.

        Raises:
            UserError: a checkpoint that does not fit, or settings that cannot change.
        """
        self._cfg = cfg
        self._topology = topology
        self._policy = policy
        self._data = data
        self._tokenizer = tokenizer
        self._optimizer = optimizer
        contents = {"model": policy.spec, "tokenizer": tokenizer.digest, **contents}
        self._settings = RunSettings(cfg, contents, world_size=topology.world_size)
        self._states = {"settings": self._settings, **states}
        self._is_spent = is_spent
        self._health = RunHealth()
        with raised_together(topology):
            came_in = dtype_of(cfg.model) if cfg.export.dtype == "auto" else None
            self._export_dtype = cfg.export.resolve(came_in, cfg.policy)
        self._checkpointer = Checkpointer(
            cfg.run_dir / FOLDER,
            topology,
            cfg.checkpoint,
            files=model_files(policy.spec, self._export_dtype, tokenizer),
        )
        self._logger: MetricsLogger | None = None
        self._stepping = False
        self._signal: Signals | None = None
        """What this rank got and has not acted upon."""
        self._stopped = False
        """A rank got a signal, and all know."""
        self.start = restore(self._checkpointer, policy, optimizer, self._states)
        """The step whose checkpoint this run goes on from; 0 when there is none."""
        self._last_step = self._saved_step = self.start
        self._watch = SignalWatch(
            react=self._react,
            leave=self._leave,
            patience_seconds=cfg.checkpoint.grace_seconds,
        )

    def __enter__(self) -> Self:
        """Write the config, and open the logs.

        Raises:
            UserError: the folder cannot be written, or its `model` is no export.
        """
        cfg, is_main = self._cfg, self._topology.is_main
        with raised_together(self._topology):
            if is_main:
                check_export(self.model_dir)
                self._settings.write(cfg.run_dir, step=self.start)
            self._logger = MetricsLogger(
                cfg.run_dir,
                enabled=is_main,
                total_steps=cfg.num_steps,
                resumed_from=self.start or None,
            )
        for line in banner(
            cfg.model, self._policy, self._topology, self._data, cfg.run_dir, start=self.start
        ):
            self._say(line)
        for change in self._settings.changes:
            self._say(change)
        self._watch.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        left = self._watch.seconds_left
        ours = isinstance(error, RuntimeError) and not isinstance(error, FailedRunError)
        if ours and left is not None and left < SECONDS_BETWEEN_RANKS:
            # Another rank was out of patience a moment earlier, and its connections broke.
            self._watch.join()
        self._watch.__exit__(kind, error, traceback)
        assert self._logger is not None, "entered"
        self._logger.close()

    @property
    def model_dir(self) -> Path:
        """Where the trained model goes."""
        return self._cfg.run_dir / "model"

    def steps(self) -> Iterator[int]:
        """Numbers of the steps to take. A signal that comes in between lets the step be finished.

        Raises:
            FailedRunError: all that a very short run did was no good.
        """
        if self.start and self.is_complete:
            self._say(f"{self._cfg.run_dir} is finished after step {self.start}")
        self._stepping = True
        while not (self.is_complete or self._stopped):
            yield self._last_step + 1
        self._stepping = False
        if self._stopped:
            self._say_stopped()
        elif self.start == 0:
            self._fail_if(self._health.of_short_run())

    def end_step(
        self, step: int, *, gradient_norms: Sequence[float], num_verdicts: int | None = None
    ) -> None:
        """Close a step: what came of it, and whether anybody was asked to stop.

        Args:
            gradient_norms: of each optimizer step tried.
            num_verdicts: valid ones of this rank's groups; None where nothing is judged.

        Raises:
            FailedRunError: nothing has been learned for a while.
        """
        judged = num_verdicts is None or num_verdicts > 0
        flags = torch.tensor([self._signal is not None, judged], dtype=torch.int32)
        stopped, judged = self._topology.all_reduce_max(flags).bool().tolist()
        self._last_step = step
        self._stopped = stopped
        self._fail_if(self._health.record(step, gradient_norms=gradient_norms, judged=judged))

    def must_save(self, step: int) -> bool:
        """Whether the step that has ended is to be saved: its turn, or the last."""
        is_last = self.is_complete or self._stopped
        return self._checkpointer.due(step, is_last=is_last)

    def save(self, step: int) -> None:
        """Write the checkpoint of a step that has ended.

        Raises:
            UserError: it cannot be written; the earlier ones are as they were.
        """
        extra = {name: part.state_dict() for name, part in self._states.items()}
        self._checkpointer.save(step, self._policy, self._optimizer, extra | {"step": step})
        self._saved_step = step

    def must_evaluate(self, step: int, interval: int) -> bool:
        """Whether the step that has ended is one to evaluate after: every `interval`-th, and the
        last; never when asked to stop."""
        return not self._stopped and (self.is_complete or step % interval == 0)

    @property
    def is_complete(self) -> bool:
        """Whether there is no step left to take."""
        return self._last_step >= self._cfg.num_steps or self._is_spent()

    def must_export(self, step: int) -> bool:
        """Whether the model of the step that has ended is to be written: its turn, and not the
        last, whose model the run leaves anyway; never when asked to stop."""
        interval = self._cfg.export.interval
        return interval > 0 and step % interval == 0 and not (self.is_complete or self._stopped)

    def export(self, step: int) -> None:
        """Write the model of a step that has ended.

        Raises:
            UserError: it cannot be written.
        """
        self._write_model(self._cfg.run_dir / "exports" / f"step_{step:06}")

    @property
    def must_leave_model(self) -> bool:
        """Whether the trained model is to be written: the run is complete, and its folder has no
        model that was written after its last checkpoint."""
        if self._stopped or not self.is_complete:
            return False
        return self._last_step > self.start or not self._has_model()

    def leave_model(self) -> None:
        """Write the trained model, and say what was reached and what to do with it.

        Raises:
            UserError: it cannot be written.
        """
        self._write_model(self.model_dir)
        self._say(f"done after step {self._last_step}: {self.model_dir}")
        next_command = "recipes/evaluate.py --data FILE --output FOLDER --model"
        self._say(f"next: python {next_command} {self.model_dir}")

    def _write_model(self, folder: Path) -> None:
        save_hf(
            self._policy,
            folder,
            tokenizer=self._tokenizer,
            topology=self._topology,
            dtype=self._export_dtype,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a step's metrics.

        Raises:
            UserError: they cannot be written.
        """
        assert self._logger is not None, "entered"
        with raised_together(self._topology):
            self._logger.log(step, metrics)

    def _has_model(self) -> bool:
        """On all ranks what the main one sees."""
        exported = self.model_dir / "config.json"
        saved = self._cfg.run_dir / FOLDER / f"step_{self.start:06}" / "manifest.json"
        found = (
            self._topology.is_main
            and exported.exists()
            and exported.stat().st_mtime >= saved.stat().st_mtime
        )
        return self._topology.any(found)

    def _fail_if(self, ailment: str | None) -> None:
        if ailment is not None:
            raise FailedRunError(f"{ailment}; {self._remains()}")

    def _react(self, signal: Signals) -> None:
        """In the main thread, at once: a step is finished, all else let go."""
        self._signal = signal
        if not self._stepping:
            raise StoppedBySignal(self._stopped_line(), code=0)

    def _leave(self, signal: Signals, again: bool) -> None:
        """In the watching thread, where the main one does not come to an end."""
        self._signal = signal
        self._say_stopped()
        exit_at_once(128 + signal if again else 0)

    def _stopped_line(self) -> str:
        name = "a signal to another rank" if self._signal is None else self._signal.name
        unfinished = self._stepping and not self._stopped
        during = f"in step {self._last_step + 1}" if unfinished else f"after step {self._last_step}"
        return f"stopped by {name} {during}; {self._remains()}"

    def _remains(self) -> str:
        """What there is to go on from."""
        if not self._saved_step:
            return "nothing is saved yet: start it again with --resume"
        return f"step {self._saved_step} is saved: go on with the same command and --resume"

    def _say_stopped(self) -> None:
        if self._topology.is_main:
            print(self._stopped_line(), file=sys.stderr, flush=True)

    def _say(self, line: str) -> None:
        if self._topology.is_main:
            print(line, flush=True)


def claim_folder(cfg: RunConfig, topology: Topology) -> None:
    """Refuse to write over what another run left, before anything is loaded. Collective.

    Raises:
        UserError: the folder has metrics, checkpoints or a model in it and is not to be resumed,
            or has a model and nothing to go on from.
    """
    with raised_together(topology):
        if topology.is_main:
            _refuse_what_is_there(cfg.run_dir, resume=cfg.resume)


def require_no_run(folder: Path, topology: Topology) -> None:
    """Refuse a folder that belongs to a training run, for a program that writes files of the same
    names. Collective.

    Raises:
        UserError: there are metrics or checkpoints in it.
    """
    with raised_together(topology):
        if topology.is_main and any((folder / n).exists() for n in ("metrics.jsonl", FOLDER)):
            raise UserError(f"{folder} is the folder of a training run; choose another --output")


def _refuse_what_is_there(run_dir: Path, *, resume: bool) -> None:
    metrics = run_dir / "metrics.jsonl"
    checkpoints = step_folders(run_dir / FOLDER)
    there = {
        FOLDER: checkpoints,
        "metrics.jsonl": metrics.exists() and metrics.stat().st_size,
        "exports": (run_dir / "exports").exists(),
        "model": (run_dir / "model").exists(),
    }
    found = ", ".join(name for name, is_there in there.items() if is_there)
    if found and not resume:
        raise UserError(
            f"{run_dir} already holds a run ({found}); continue it with --resume, or choose "
            "another run folder"
        )
    if there["model"] and not checkpoints:
        raise UserError(
            f"{run_dir} holds a model and no checkpoint to continue from; choose another run folder"
        )
