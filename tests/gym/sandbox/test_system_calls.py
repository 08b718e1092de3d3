"""The filter refuses the system calls that it lists, and nothing else."""

from __future__ import annotations

import platform
import struct

import pytest

from compass.gym.domains.code import CodeConfig, judge, workshop
from compass.gym.sandbox.supply import SandboxConfig
from compass.gym.sandbox.system_calls import filter_for
from compass.types import Prompt

ALLOW, REFUSE = 0x7FFF0000, 0x00050001
X86_64, AARCH64 = 0xC000003E, 0xC00000B7


def answer(program: bytes, architecture: int, number: int) -> int:
    """What the kernel's interpreter would return for a call."""
    steps = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        kind, if_true, if_false, value = steps[at]
        at += 1
        if kind == 0x20:
            accumulator = {0: number, 4: architecture}[value]
        elif kind == 0x15:
            at += if_true if accumulator == value else if_false
        elif kind == 0x35:
            at += if_true if accumulator >= value else if_false
        else:
            assert kind == 0x06
            return value


@pytest.mark.parametrize(
    ("machine", "architecture", "number", "expected"),
    [
        ("x86_64", X86_64, 0, ALLOW),  # read
        ("x86_64", X86_64, 29, REFUSE),  # shmget
        ("x86_64", X86_64, 31, ALLOW),  # shmctl
        ("x86_64", X86_64, 56, ALLOW),  # clone
        ("x86_64", X86_64, 101, REFUSE),  # ptrace
        ("x86_64", X86_64, 427, REFUSE),  # io_uring_register, the last of the list
        ("x86_64", X86_64, 0x40000000 + 29, REFUSE),  # shmget by its second number
        ("x86_64", 0x40000003, 3, REFUSE),  # of a 32-bit program
        ("aarch64", AARCH64, 63, ALLOW),  # read
        ("aarch64", AARCH64, 194, REFUSE),  # shmget
        ("aarch64", X86_64, 63, REFUSE),
    ],
)
def test_each_call_gets_its_answer(
    machine: str, architecture: int, number: int, expected: int
) -> None:
    assert answer(filter_for(machine), architecture, number) == expected


def test_there_is_no_filter_where_the_numbers_are_not_known() -> None:
    assert filter_for("riscv64") == b""


PROGRAM = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
segment = libc.shmget(0, 4096, 0o1600)
print(segment >= 0, ctypes.get_errno())
libc.shmctl(segment, 0, None)  # IPC_RMID
"""


def test_memory_that_belongs_to_no_process_cannot_be_had_at_level_full() -> None:
    assert filter_for(platform.machine())
    prompt = Prompt(
        id="p", messages=(), domain="code", extra={"tests": [{"stdin": "", "stdout": "False 1"}]}
    )
    for level, refused in (("full", 1.0), ("files", 0.0)):
        with workshop(CodeConfig(), SandboxConfig(level=level)):
            assert judge(prompt, f"```\n{PROGRAM}\n```", True).verdict == refused
