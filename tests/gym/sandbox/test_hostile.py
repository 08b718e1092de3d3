"""No program harms anything, passes, outstays its limit, or leaves anything behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from compass.gym.pool.pool import PoolConfig, VerifierPool
from compass.gym.sandbox.supply import SandboxConfig
from compass.types import Prompt, Score
from tests.gym.sandbox.hostile_programs import DAEMONS, FLOODS, FORGERS, READERS, WRITERS

SECRET = "s3cr3t-49"
TEST_SECONDS = 1.0
_MARK = 600 + os.getpid() % 300
MARKS_MB = {"full": _MARK, "files": _MARK + 2000, "none": _MARK + 4000, "killed": _MARK + 6000}
"""Address space of programs here, by which their processes are known; a thousand more for those
who start them."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the programs would get at."""

    outside: Path
    port: int
    parent: int


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        outside = Path(folder)
        outside.chmod(0o777)  # nothing but the sandbox is in the way
        (outside / "secret.txt").write_text(SECRET)
        (outside / "secret.txt").chmod(0o666)
        parent = stack.enter_context(
            subprocess.Popen(["sleep", "300"], env={"SECRET": SECRET, "PATH": os.defpath})
        )
        stack.callback(parent.kill)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = tcp.getsockname()[1]
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0compass-{port}")
        abstract.listen()
        for listener in (tcp, abstract):
            threading.Thread(target=_tell_everybody, args=[listener], daemon=True).start()
        yield Scene(outside=outside, port=port, parent=parent.pid)


def _tell_everybody(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed when the module is done
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(SECRET.encode())


def filled(program: str, scene: Scene) -> str:
    values = {"outside": scene.outside, "port": scene.port, "parent": scene.parent}
    for name, value in values.items():
        program = program.replace("{" + name + "}", str(value))
    return program.replace("{{}}", "{}")


def config_at(level: str) -> PoolConfig:
    mark = MARKS_MB[level]
    return PoolConfig(
        num_workers=4,  # most of what they do is wait
        max_memory_gb=(mark + 1000) / 1024,
        sandbox=SandboxConfig(level=level, test_seconds=TEST_SECONDS, memory_mb=mark),
    )


@contextlib.contextmanager
def pool_at(level: str) -> Iterator[VerifierPool]:
    """A pool that leaves nothing when it is closed."""
    with VerifierPool(config_at(level), domains=["code"]) as pool:
        yield pool
    assert not still_there(MARKS_MB[level])
    assert not still_there(MARKS_MB[level] + 1000)


@pytest.fixture(scope="module")
def full() -> Iterator[VerifierPool]:
    with pool_at("full") as pool:
        yield pool


def scores(
    level: str, pool: VerifierPool, programs: Mapping[str, str], test: Mapping[str, str]
) -> dict[str, Score]:
    prompt = Prompt(id="p", messages=(), domain="code", extra={"tests": [test]})
    for name, program in programs.items():
        pool.submit_text(name, prompt, f"```python\n{program}\n```", finished=True)
    found = {str(name): score for name, score in pool.drain()}
    config = config_at(level)
    left = still_there(MARKS_MB[level], waiting=config.num_workers * config.sandbox.num_ready)
    assert not left, f"left behind beside the sandboxes that wait: {left}"
    return found


def still_there(megabytes: int, waiting: int = 0) -> list[str]:
    """Processes with that limit, when there are more than `waiting`, after 5 s at most: one
    that was just starting ends when it has started and finds nobody."""
    deadline = time.monotonic() + 5
    while len(found := limited_to(megabytes)) > waiting and time.monotonic() < deadline:
        os.sched_yield()
    return found if len(found) > waiting else []


def limited_to(megabytes: int) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            is_gone = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not is_gone and f" {megabytes * 2**20} " in (folder / "limits").read_text():
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes()[:40]!r}")
    return found


def check_all_are_harmless_zeros(found: Mapping[str, Score], programs: Mapping[str, str]) -> None:
    assert found.keys() == programs.keys()
    passed = {name: score for name, score in found.items() if score.verdict != 0}
    assert not passed
    broken = {name: score for name, score in found.items() if not score.valid or not score.reason}
    assert not broken
    late = {n: s.seconds for n, s in found.items() if s.seconds > TEST_SECONDS + 1}
    assert not late


@pytest.fixture(autouse=True)
def _nothing_of_ours_changes(scene: Scene) -> Iterator[None]:
    before = Path("/proc/self/mountinfo").read_text()
    yield
    assert Path("/proc/self/mountinfo").read_text() == before
    assert [path.name for path in scene.outside.iterdir()] == ["secret.txt"]
    assert (scene.outside / "secret.txt").read_text() == SECRET
    os.kill(scene.parent, signal.SIGCONT)  # raises if it is gone
    assert Path(f"/proc/{scene.parent}/stat").read_text().split()[2] != "Z"


@pytest.mark.parametrize(
    "programs",
    [FLOODS, DAEMONS, READERS, WRITERS, FORGERS],
    ids=["flood", "leave", "read", "change", "forge"],
)
def test_at_level_full_no_program_harms_passes_stays_or_leaves_anything(
    programs: Mapping[str, str], scene: Scene, full: VerifierPool
) -> None:
    programs = {name: filled(program, scene) for name, program in programs.items()}
    found = scores("full", full, programs, {"stdin": "", "stdout": SECRET})
    check_all_are_harmless_zeros(found, programs)


@pytest.mark.parametrize("programs", [DAEMONS, FORGERS], ids=["leave", "forge"])
def test_at_level_full_no_program_passes_tests_that_call_it(
    programs: Mapping[str, str], scene: Scene, full: VerifierPool
) -> None:
    programs = {name: filled(program, scene) for name, program in programs.items()}
    found = scores("full", full, programs, {"code": "assert square(7) == 49"})
    check_all_are_harmless_zeros(found, programs)


FILE_READERS = {name: READERS[name] for name in READERS if "file" in name or "environment" in name}
FILE_WRITERS = {name: WRITERS[name] for name in WRITERS if "kill" not in name}


def test_at_level_files_no_program_reads_or_writes_files_of_ours(scene: Scene) -> None:
    programs = {
        name: filled(program, scene) for name, program in (FILE_READERS | FILE_WRITERS).items()
    }
    with pool_at("files") as pool:
        found = scores("files", pool, programs, {"stdin": "", "stdout": SECRET})
    check_all_are_harmless_zeros(found, programs)


def test_without_isolation_the_secret_can_be_had(scene: Scene) -> None:
    """What the other tests rest on."""
    names = ("a file outside", "the parent's environment", "a socket", "an abstract socket")
    programs = {name: filled(READERS[name], scene) for name in names}
    with pool_at("none") as pool:
        found = scores("none", pool, programs, {"stdin": "", "stdout": SECRET})
    assert [found[name].verdict for name in names] == [1.0] * len(names)


LAUNCHING = """
import resource, sys
from compass.gym.sandbox.supply import SandboxConfig, Sandboxes
level, most = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (most * 2**20, most * 2**20))
with Sandboxes(SandboxConfig(level=level, memory_mb=most, num_ready=4)) as sandboxes:
    while True:
        sandboxes.discard(sandboxes.take())
        print("one", flush=True)
"""


@pytest.mark.parametrize("level", ["full", "files", "none"])
def test_a_worker_that_is_killed_while_it_starts_sandboxes_leaves_none(level: str) -> None:
    for num_started in range(1, 5):
        command = [sys.executable, "-c", LAUNCHING, level, f"{MARKS_MB['killed']}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for _ in range(num_started):
                worker.stdout.readline()
            worker.kill()
        assert not still_there(MARKS_MB["killed"])
