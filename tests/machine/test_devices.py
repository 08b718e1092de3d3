"""What a machine lacks is said in one line with the remedy, from facts that tests make up."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest
import torch

from compass.errors import UserError
from compass.machine.devices import (
    Gpu,
    Machine,
    check_compiler,
    check_gpus,
    choose_device,
    driver_version,
    this_machine,
)

H100 = Gpu(name="NVIDIA H100 80GB HBM3", capability=(9, 0))
NODE = Machine(
    torch_version="2.13.0+cu130",
    cuda_build="13.0",
    driver="580.65.06",
    has_device_file=True,
    gpus=(H100,) * 8,
    has_triton=True,
)
LAPTOP = replace(NODE, driver=None, has_device_file=False, gpus=())


def refusal(choice: str, machine: Machine) -> str:
    with pytest.raises(UserError) as refused:
        choose_device(choice, machine)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_auto_takes_what_is_there() -> None:
    assert choose_device("auto", NODE) == choose_device("cuda", NODE) == "cuda"
    assert choose_device("auto", LAPTOP) == choose_device("cpu", LAPTOP) == "cpu"
    assert choose_device("cpu", replace(NODE, gpus=())) == "cpu"


@pytest.mark.parametrize("choice", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"driver": "550.54.14"},
            "torch 2.13.0+cu130 is built for CUDA 13.0, which needs NVIDIA driver 580 or newer, "
            "and the driver here is 550.54.14",
        ),
        ({"driver": "580.65.06"}, "the driver is 580.65.06, but torch sees no device"),
        ({"cuda_build": "12.8", "driver": "550.54.14"}, "CUDA 12.8 and the driver is 550.54.14"),
        ({"driver": None}, "needs NVIDIA driver 580 or newer, and no driver is loaded here"),
        ({"torch_version": "2.13.0+cpu", "cuda_build": None}, "2.13.0+cpu is built without CUDA"),
        ({"cuda_build": "99.1"}, "torch 2.13.0+cu130 is built for CUDA 99.1 and the driver is"),
    ],
)
def test_a_device_that_torch_cannot_use_is_never_passed_over(choice, change, named) -> None:
    """`auto` would otherwise train on the CPU beside eight idle devices."""
    said = refusal(choice, replace(NODE, gpus=(), **change))
    assert said.startswith(f"parallel.device={choice}: ")
    assert named in said
    assert said.endswith("or parallel.device=cpu")


def test_cuda_without_a_driver_names_what_torch_needs() -> None:
    assert "CUDA 13.0, which needs NVIDIA driver 580" in refusal("cuda", LAPTOP)


def test_more_ranks_than_devices_are_counted() -> None:
    check_gpus(NODE, num_local_ranks=8, local_rank=7)
    with pytest.raises(UserError, match=r"9 ranks on this machine, but torch sees 8 CUDA devices"):
        check_gpus(NODE, num_local_ranks=9, local_rank=8)
    with pytest.raises(UserError, match=r"sees 1 CUDA device; start at most 1"):
        check_gpus(replace(NODE, gpus=(H100,)), num_local_ranks=2, local_rank=0)


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_a_device_below_ampere_is_refused_by_the_rank_that_has_it(capability) -> None:
    old = Gpu(name="Tesla T4", capability=capability)
    mixed = replace(NODE, gpus=(H100, old))
    check_gpus(mixed, num_local_ranks=2, local_rank=0)
    with pytest.raises(UserError, match=r"cuda:1 \(Tesla T4\) has compute capability 7\.\d"):
        check_gpus(mixed, num_local_ranks=2, local_rank=1)
    check_gpus(
        replace(NODE, gpus=(Gpu(name="A100", capability=(8, 0)),)), num_local_ranks=1, local_rank=0
    )


def test_cuda_without_triton_is_refused() -> None:
    with pytest.raises(UserError, match=r"triton is not installed.*torch 2\.13\.0\+cu130 asks for"):
        check_gpus(replace(NODE, has_triton=False), num_local_ranks=1, local_rank=0)


NO_COMPILER = RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")
NO_HEADERS = subprocess.CalledProcessError(1, ["/usr/bin/gcc", "/tmp/x/main.c", "-lcuda"])


@pytest.mark.parametrize("error", [NO_COMPILER, NO_HEADERS, FileNotFoundError("gcc")])
def test_a_machine_that_cannot_build_kernels_is_told_what_they_need(error) -> None:
    def compile_and_run() -> None:
        raise error

    with pytest.raises(UserError, match=r"install gcc and python3-dev") as refused:
        check_compiler(compile_and_run)
    assert str(error).splitlines()[0][:30] in str(refused.value)
    check_compiler(lambda: None)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC\n"
            "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0)\n",
            "550.54.14",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n",
            "580.65.06",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82  Sat\n", "470.82"),
        ("", None),
    ],
)
def test_the_drivers_version_is_read_from_what_it_says_of_itself(text, version) -> None:
    assert driver_version(text) == version


def test_this_machine_is_what_torch_says() -> None:
    machine = this_machine()
    assert machine.torch_version == torch.__version__
    assert len(machine.gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
