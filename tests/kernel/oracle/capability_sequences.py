# SPDX-License-Identifier: Apache-2.0
"""KVM_CHECK_EXTENSION: the kernel's beside the emulator's, each capability of each kind of VM."""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, cast

from snpcerts.abi.kvm import VmType
from snpcerts.emulator.kvm.capability import capability
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.psp.firmware import Firmware

from .difference import DifferenceError

NUMBERS: Final = range(300)  # of capabilities: Linux 7.3 has 250
# What is asked: /dev/kvm, a VM of a type, the same with a split irqchip.
_ASKED: Final = (
    (None, False),
    (VmType.DEFAULT, False),
    (VmType.SNP, False),
    (VmType.SNP, True),
)
CASES: Final = tuple(itertools.product(NUMBERS, _ASKED))
# What KVM reports and the emulator does not: calls that it does not have, and their capabilities.
NOT_EMULATED: Final = {
    "Hyper-V's enlightenments": (44, 45, 46, 96, 123, 148, 149, 154, 155, 161, 167, 191, 199),
    "Xen's hypercalls": (38,),
    "KVM_GET_ONE_REG and KVM_SET_ONE_REG": (70,),
    "system management mode": (117,),
    "device attributes of a vCPU": (127,),
    "the choice of exits of running code": (143, 193),
    "logs of the pages that a guest has written": (168, 192, 223),
    "performance counters": (173, 212, 226),
    "none: KVM_CAP_LAST_CPU has no call": (184,),
    "what code in a guest sees of KVM": (187, 190, 213),
    "a debugger's breakpoints in a guest": (195,),
    "SGX": (196,),
    "copying and moving an encrypted VM": (197, 206),
    "statistics": (203,),
    "huge pages of the host": (220,),
    "page tables that are filled before a guest runs": (236,),
    "a guest_memfd that can be mapped": (244,),
}
_NOT_REPORTED: Final = frozenset(itertools.chain.from_iterable(NOT_EMULATED.values()))


def lives(
    path: Path, seed: int, numbers: Iterable[int]
) -> Iterator[tuple[int, set[str], DifferenceError | None]]:
    """Each question by its number, what was reported, and the difference.

    There are no more than :data:`CASES`; they come again and again, whatever the seed is.
    """
    del seed
    ask = ctypes.CDLL(str(path)).oracle_check_extension
    ask.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_bool, ctypes.c_int)
    platform = Platform(cast("Firmware", None))
    for number in numbers:
        cap, (kind, split) = CASES[number % len(CASES)]
        kernel = ask(cap, -1 if kind is None else int(kind), split, os.cpu_count() or 1)
        emulator = capability(platform, cap, kind, split_irqchip=split)
        found = None
        if cap in _NOT_REPORTED:
            wrong = "in NOT_EMULATED, but KVM has none" if not kernel else ""
            wrong = "in NOT_EMULATED, but reported" if emulator else wrong
        else:
            wrong = "value" if kernel != emulator else ""
        if wrong:
            values = {"value": f"{kernel:#x} {emulator:#x}"}
            found = DifferenceError(
                f"capability {cap}: {wrong}", values, [f"{kind} split irqchip {split}"]
            )
        yield number, {str(cap)} if kernel else set(), found
