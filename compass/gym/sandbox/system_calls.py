"""System calls that no program needs, as a filter for the kernel (seccomp, classic BPF).

System V shared memory outlives the process that filled it, so limits on processes do not hold it;
the others are how one gets at other processes, or at seldom used parts of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType

_X86_64, _AARCH64 = "x86_64", "aarch64"
_ARCHITECTURES = MappingProxyType({_X86_64: 0xC000003E, _AARCH64: 0xC00000B7})
"""AUDIT_ARCH_* of linux/audit.h."""
_NUMBERS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        # memory that belongs to no process
        "shmget": (29, 194),
        "shmat": (30, 196),
        "msgget": (68, 186),
        "semget": (64, 190),
        "mq_open": (240, 180),
        # other processes
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "pidfd_getfd": (438, 438),
        # namespaces and mounts
        "unshare": (272, 97),
        "setns": (308, 268),
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "open_by_handle_at": (304, 265),
        # the kernel
        "add_key": (248, 217),
        "request_key": (249, 218),
        "keyctl": (250, 219),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
    }
)
"""By name: the number on x86-64, and on aarch64."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # in struct seccomp_data
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO | EPERM
_X32 = 0x40000000
"""On x86-64, from here on every call has a second number."""


def filter_for(machine: str) -> bytes:
    """The filter for `platform.machine()`, as bwrap takes it: the calls above fail with EPERM, and
    so do all of another architecture. Empty, which filters nothing, where numbers are not known."""
    if machine not in _ARCHITECTURES:
        return b""
    column = (_X86_64, _AARCH64).index(machine)
    refused = [(_AT_LEAST, _X32), *((_EQUAL, both[column]) for both in _NUMBERS.values())]
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER_AT),
        *((kind, len(refused) - i, 0, value) for i, (kind, value) in enumerate(refused)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
