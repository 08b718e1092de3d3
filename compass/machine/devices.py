"""What a machine has to compute with, and why a run cannot use it: one line, before weights are
loaded.

Mistakes are found from a record of facts, so that each is told in the same words on every machine.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from compass.errors import UserError

OLDEST_CAPABILITY = (8, 0)
"""Ampere: the first with bfloat16 tensor cores, which attention and matrix products use."""
OLDEST_DRIVERS = {"11": 450, "12": 525, "13": 580}
"""Release of NVIDIA's driver that each major version of CUDA needs at least (CUDA release notes,
table "CUDA Toolkit and Minimum Required Driver Versions")."""
_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_DEVICE_FILE = Path("/dev/nvidia0")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A CUDA device that torch can use."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this process finds. Built by `this_machine`."""

    torch_version: str
    cuda_build: str | None
    """Version of CUDA that torch is built for; None without."""
    driver: str | None
    """Version of NVIDIA's kernel driver; None where none is loaded."""
    has_device_file: bool
    """Whether the system shows an NVIDIA device, usable or not."""
    gpus: tuple[Gpu, ...]
    has_triton: bool
    """Whether Triton can be imported, which the kernels for CUDA are written in."""


def this_machine() -> Machine:
    """Ask torch and the system; starts nothing on a device."""
    with warnings.catch_warnings():  # of an old driver, say, in many lines; ours is one
        warnings.simplefilter("ignore")
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = (torch.cuda.get_device_properties(i) for i in range(num_gpus))
    return Machine(
        torch_version=torch.__version__,
        cuda_build=torch.version.cuda,
        driver=driver_version(_DRIVER_VERSION.read_text() if _DRIVER_VERSION.is_file() else ""),
        has_device_file=_DEVICE_FILE.exists(),
        gpus=tuple(Gpu(name=gpu.name, capability=(gpu.major, gpu.minor)) for gpu in found),
        has_triton=importlib.util.find_spec("triton") is not None,
    )


def driver_version(text: str) -> str | None:
    """From what the driver says of itself in /proc."""
    found = re.search(r"^NVRM version:.*?\s(\d+\.\d+(\.\d+)?)\s", text, re.MULTILINE)
    return found[1] if found else None


def choose_device(choice: Literal["auto", "cpu", "cuda"], machine: Machine) -> str:
    """`cpu` or `cuda`. `auto` takes CUDA where it can be used and the CPU where there is no device,
    but does not train on the CPU beside a device that torch cannot use.

    Raises:
        UserError: CUDA is wanted and cannot be used; what torch and driver are, and the remedy.
    """
    if choice == "cpu" or (choice == "auto" and not machine.gpus and not machine.has_device_file):
        return "cpu"
    if not machine.gpus:
        raise UserError(f"parallel.device={choice}: {_why_not(machine)}, or parallel.device=cpu")
    return "cuda"


def _why_not(machine: Machine) -> str:
    torch_is = f"torch {machine.torch_version} is built for CUDA {machine.cuda_build}"
    if machine.cuda_build is None:
        return (
            f"torch {machine.torch_version} is built without CUDA; install a build with CUDA "
            f"(docs/gpu.md)"
        )
    oldest = OLDEST_DRIVERS.get(machine.cuda_build.partition(".")[0])
    needs = "" if oldest is None else f", which needs NVIDIA driver {oldest} or newer"
    if machine.driver is None:
        return f"{torch_is}{needs}, and no driver is loaded here; install one"
    if oldest is not None and int(machine.driver.partition(".")[0]) < oldest:
        return (
            f"{torch_is}{needs}, and the driver here is {machine.driver}; install a newer driver, "
            f"or torch for an older CUDA (docs/gpu.md)"
        )
    return (
        f"{torch_is} and the driver is {machine.driver}, but torch sees no device; show it one "
        f"(CUDA_VISIBLE_DEVICES, the container's --gpus)"
    )


def check_gpus(machine: Machine, *, num_local_ranks: int, local_rank: int) -> None:
    """Refuse what cannot work on this machine's CUDA devices.

    Raises:
        UserError: more ranks than devices, a device that is too old, or no Triton.
    """
    num_gpus = len(machine.gpus)
    if num_local_ranks > num_gpus:
        raise UserError(
            f"{num_local_ranks} ranks on this machine, but torch sees {num_gpus} CUDA "
            f"device{'s' * (num_gpus != 1)}; start at most {num_gpus} (--nproc-per-node), or say "
            f"parallel.device=cpu"
        )
    gpu = machine.gpus[local_rank]
    if gpu.capability < OLDEST_CAPABILITY:
        major, minor = gpu.capability
        raise UserError(
            f"cuda:{local_rank} ({gpu.name}) has compute capability {major}.{minor}, and Compass "
            f"needs {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]} (A100) or newer; use another "
            f"device, or parallel.device=cpu"
        )
    if not machine.has_triton:
        raise UserError(
            f"the package triton is not installed, and kernels for CUDA need it; install the "
            f"version that torch {machine.torch_version} asks for, or say parallel.device=cpu"
        )


def check_compiler(compile_and_run: Callable[[], None]) -> None:
    """Find out now, with a kernel of one line, whether Triton's kernels can be built.

    Raises:
        UserError: they cannot; what Triton said, and what it needs.
    """
    try:
        compile_and_run()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        said = next(
            (line for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise UserError(
            f"Triton cannot build its kernels here ({said}); it needs a C compiler and Python's "
            f"headers: install gcc and python3-dev (of this Python's version)"
        ) from None
