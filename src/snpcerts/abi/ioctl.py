# SPDX-License-Identifier: Apache-2.0
"""How Linux builds ioctl request numbers on x86-64 (``asm-generic/ioctl.h``).

The type bytes of KVM and of the SEV drivers are here too, because the seccomp filter of the
emulator's front door needs them but not the structures.
"""

from __future__ import annotations

KVMIO = 0xAE  # the type byte of KVM's ioctls
SEV_IOC_TYPE = ord("S")  # the type byte of /dev/sev's and /dev/sev-guest's ioctls

_NONE, _WRITE, _READ = 0, 1, 2


def _number(direction: int, kind: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | kind << 8 | number


def io(kind: int, number: int) -> int:
    """Return the number of a request without an argument structure (``_IO``)."""
    return _number(_NONE, kind, number, 0)


def iow(kind: int, number: int, size: int) -> int:
    """Return the number of a request for which the kernel reads ``size`` bytes (``_IOW``)."""
    return _number(_WRITE, kind, number, size)


def ior(kind: int, number: int, size: int) -> int:
    """Return the number of a request for which the kernel writes ``size`` bytes (``_IOR``)."""
    return _number(_READ, kind, number, size)


def iowr(kind: int, number: int, size: int) -> int:
    """Return the number of a request for which the kernel reads and writes ``size`` bytes
    (``_IOWR``).
    """
    return _number(_READ | _WRITE, kind, number, size)


def type_of(request: int) -> int:
    """Return the type byte of a request number."""
    return request >> 8 & 0xFF
