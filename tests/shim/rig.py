# SPDX-License-Identifier: Apache-2.0
"""A VMM in Python that does not know the exit; its process preloads the shim and a fake KVM."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from snpcerts.abi import kvm
from snpcerts.vmm.vcpu_run import run_vcpu

PAGE = 4096
SNP_VM = 4
_ENABLED, _REGIONS = 0xFAFA, 0xFAFB  # fake_kvm.c
_TOLD = struct.Struct("<III")
_SEEN = struct.Struct("<IIIII")


@dataclass(frozen=True)
class Seen:
    """What the fake KVM has seen of a vCPU."""

    runs: int
    handshakes: int
    immediate_exit: int
    locked: int
    interruptible: int


@dataclass(frozen=True)
class Answer:
    """What KVM received, and what KVM_RUN returned."""

    ret: int
    npages: int
    errno: int


class Vcpu:
    """One vCPU, with its kvm_run mapped as a VMM maps it."""

    def __init__(self, vm: int) -> None:
        self.fd = fcntl.ioctl(vm, kvm.Ioctl.CREATE_VCPU, 0)
        self.run = mmap.mmap(self.fd, 12288, mmap.MAP_SHARED)

    def tell(self, exit_reason: int, handshake_errno: int = errno.EINTR, kick: int = 0) -> None:
        _TOLD.pack_into(self.run, PAGE, exit_reason, handshake_errno, kick)

    @property
    def seen(self) -> Seen:
        return Seen(*_SEEN.unpack_from(self.run, PAGE + _TOLD.size))

    def kvm_run(self) -> int:
        """Call KVM_RUN; return 0 or the errno."""
        try:
            run_vcpu(self.fd)
        except OSError as error:
            return error.errno or -1
        return 0

    def ask(
        self,
        gpa: int,
        npages: int,
        *,
        handshake_errno: int = errno.EINTR,
        kick: int = 0,
        exit_number: int = 43,
    ) -> Answer:
        """Let the guest ask for certificates."""
        self.tell(exit_number, handshake_errno, kick)
        struct.pack_into("<QQ", self.run, 32, gpa, npages)
        result = self.kvm_run()
        ret, pages = (
            struct.unpack_from("<Q", self.run, 48)[0],
            struct.unpack_from("<Q", self.run, 40)[0],
        )
        return Answer(ret, pages, result)


class Vm:
    """A VM, by default of type SNP and initialised."""

    def __init__(self, kind: int = SNP_VM, *, enables: bool = False) -> None:
        # The fake KVM accepts any open file in place of /dev/kvm.
        kvm_fd = os.open(os.devnull, os.O_RDWR)
        self.fd = fcntl.ioctl(kvm_fd, kvm.Ioctl.CREATE_VM, kind)
        os.close(kvm_fd)
        self.memory: list[mmap.mmap] = []
        if kind == SNP_VM:
            self.command(kvm.SevCommand.INIT2)
        if enables:
            self.command(kvm.SevCommand.SNP_ENABLE_REQ_CERTS)

    def command(self, number: int) -> None:
        fcntl.ioctl(self.fd, kvm.Ioctl.MEMORY_ENCRYPT_OP, kvm.SevCmd(id=number).pack())

    @property
    def times_enabled(self) -> int:
        return fcntl.ioctl(self.fd, _ENABLED, 0)

    @property
    def regions_set(self) -> int:
        return fcntl.ioctl(self.fd, _REGIONS, 0)

    def add_memory(self, slot: int, gpa: int, pages: int, *, flags: int = 0) -> mmap.mmap:
        memory = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[:] = b"\xee" * len(memory)
        self.memory.append(memory)
        self.set_region(slot, gpa, len(memory), address_of(memory), flags=flags)
        return memory

    def set_region(
        self, slot: int, gpa: int, size: int, address: int, *, flags: int = 0, second: bool = False
    ) -> None:
        region = bytearray(160 if second else 32)
        struct.pack_into("<IIQQQ", region, 0, slot, flags, gpa, size, address)
        call = kvm.Ioctl.SET_USER_MEMORY_REGION2 if second else kvm.Ioctl.SET_USER_MEMORY_REGION
        fcntl.ioctl(self.fd, call, region)


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def open_files(path: Path) -> int:
    """How many descriptors of this process are open on ``path``."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{fd}").startswith(str(path))
    return count
