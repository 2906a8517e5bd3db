# SPDX-License-Identifier: Apache-2.0
"""A minimal VMM that launches an SNP VM with certificates, in the usual order of calls."""

from __future__ import annotations

import ctypes
import mmap
import struct
from dataclasses import dataclass
from typing import Final, Protocol

from snpcerts.abi.ghcb import PAGE_SIZE
from snpcerts.abi.kvm import (
    MAP_GPA_RANGE_ENCRYPTED,
    MEM_GUEST_MEMFD,
    MEMORY_ATTRIBUTE_PRIVATE,
    Cap,
    CreateGuestMemfd,
    ExitReason,
    Ioctl,
    MemoryAttributes,
    PageType,
    RunView,
    SevCmd,
    SevCommand,
    SevInit,
    SnpLaunchFinish,
    SnpLaunchStart,
    SnpLaunchUpdate,
    UserspaceMemoryRegion2,
    VmType,
)
from snpcerts.emulator.kvm.capability import HYPERCALLS

POLICY: Final = 1 << 16 | 1 << 17  # SMT, and the bit that must be one
MEMORY_SIZE: Final = 1 << 21
SECRETS_GPA: Final = PAGE_SIZE  # the first page is measured, the second becomes the secrets page


class KernelCalls(Protocol):
    """The system calls that a VMM makes. Each raises ``OSError`` if it fails."""

    def open(self, path: str) -> int:
        """Open a device and return a descriptor for it."""

    def ioctl(self, fd: int, request: int, argument: int | bytearray = 0) -> int:
        """Call ioctl(2). If ``argument`` is a bytearray, the kernel writes its result into it."""

    def mmap_run(self, vcpu_fd: int) -> mmap.mmap:
        """Map and return a vCPU's kvm_run."""

    def close(self, fd: int) -> None:
        """Close a descriptor."""


@dataclass(slots=True)
class ReferenceVm:
    """A launched VM. Its memory is a single slot: GPA ``gpa`` is ``memory[gpa - base]``."""

    machine: KernelCalls
    fd: int
    sev_fd: int
    memory: mmap.mmap
    base: int
    vcpus: tuple[int, ...]
    runs: tuple[RunView, ...]

    def run(self, vcpu: int = 0) -> None:
        """Call KVM_RUN on the vCPU with index ``vcpu``. The exit is then in ``runs[vcpu]``.

        This method serves page state changes itself and then runs the guest again. Raises
        ``OSError`` if KVM_RUN fails.
        """
        self.run_once(vcpu)
        while self.runs[vcpu].exit_reason == ExitReason.HYPERCALL:
            self.change_page_state(vcpu)
            self.run_once(vcpu)

    def run_once(self, vcpu: int = 0) -> None:
        """Call KVM_RUN once; return at the next exit of any kind."""
        self.machine.ioctl(self.vcpus[vcpu], Ioctl.RUN)

    def change_page_state(self, vcpu: int = 0) -> None:
        """Serve KVM_HC_MAP_GPA_RANGE: change the page state in KVM, and zero the memory of pages
        that became private.
        """
        run = self.runs[vcpu]
        gpa, pages, attributes = run.map_gpa_range
        private = bool(attributes & MAP_GPA_RANGE_ENCRYPTED)
        size = pages * PAGE_SIZE
        self.set_private(gpa, size, private=private)
        if private and self.base <= gpa <= self.base + len(self.memory) - size:
            self.write(gpa, bytes(size))
        run.answer_hypercall(0)

    def set_private(self, gpa: int, size: int, *, private: bool) -> None:
        """Make guest memory private or shared with KVM_SET_MEMORY_ATTRIBUTES."""
        attributes = MEMORY_ATTRIBUTE_PRIVATE if private else 0
        wanted = MemoryAttributes(address=gpa, size=size, attributes=attributes)
        self.machine.ioctl(self.fd, Ioctl.SET_MEMORY_ATTRIBUTES, bytearray(wanted.pack()))

    def guest_bytes(self, gpa: int, size: int) -> bytes:
        """Return ``size`` bytes of shared guest memory at ``gpa``."""
        return self.memory[gpa - self.base : gpa - self.base + size]

    def write(self, gpa: int, data: bytes) -> None:
        """Write ``data`` to shared guest memory at ``gpa``, as a VMM writes certificates."""
        self.memory[gpa - self.base : gpa - self.base + len(data)] = data

    def close(self) -> None:
        """Close every descriptor. This ends the VM."""
        for fd in (*self.vcpus, self.fd, self.sev_fd):
            self.machine.close(fd)


def sev_command(
    machine: KernelCalls, vm_fd: int, command: int, data: bytearray | None = None, sev_fd: int = 0
) -> SevCmd:
    """Issue a KVM_MEMORY_ENCRYPT_OP command; return the command structure after the call."""
    view = None if data is None else (ctypes.c_char * len(data)).from_buffer(data)
    pointer = 0 if view is None else ctypes.addressof(view)
    issued = bytearray(SevCmd(id=command, data=pointer, sev_fd=sev_fd).pack())
    machine.ioctl(vm_fd, Ioctl.MEMORY_ENCRYPT_OP, issued)
    return SevCmd.unpack(issued)


def build_vm(
    machine: KernelCalls,
    *,
    vcpus: int = 1,
    certs: bool = True,
    memory_size: int = MEMORY_SIZE,
    base: int = 0,
    policy: int = POLICY,
    host_data: bytes = bytes(32),
) -> ReferenceVm:
    """Create and launch a VM, which is then ready for its first KVM_RUN.

    ``certs`` says whether to enable the exit for certificates. ``memory_size`` (at least two pages)
    and ``base`` are multiples of 4096, in bytes.
    """
    kvm_fd, sev_fd = machine.open("/dev/kvm"), machine.open("/dev/sev")
    vm_fd = machine.ioctl(kvm_fd, Ioctl.CREATE_VM, VmType.SNP)
    machine.close(kvm_fd)
    sev_command(machine, vm_fd, SevCommand.INIT2, bytearray(SevInit(ghcb_version=2).pack()))
    machine.ioctl(vm_fd, Ioctl.ENABLE_CAP, _enable_exit_hypercall())

    memory = mmap.mmap(-1, memory_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof((ctypes.c_char * memory_size).from_buffer(memory))
    memfd = machine.ioctl(
        vm_fd, Ioctl.CREATE_GUEST_MEMFD, bytearray(CreateGuestMemfd(size=memory_size).pack())
    )
    region = UserspaceMemoryRegion2(
        slot=0,
        flags=MEM_GUEST_MEMFD,
        guest_phys_addr=base,
        memory_size=memory_size,
        userspace_addr=address,
        guest_memfd=memfd,
    )
    machine.ioctl(vm_fd, Ioctl.SET_USER_MEMORY_REGION2, bytearray(region.pack()))
    machine.close(memfd)
    private = MemoryAttributes(address=base, size=memory_size, attributes=MEMORY_ATTRIBUTE_PRIVATE)
    machine.ioctl(vm_fd, Ioctl.SET_MEMORY_ATTRIBUTES, bytearray(private.pack()))
    if certs:
        sev_command(machine, vm_fd, SevCommand.SNP_ENABLE_REQ_CERTS)
    vcpu_fds = tuple(machine.ioctl(vm_fd, Ioctl.CREATE_VCPU, number) for number in range(vcpus))

    start = bytearray(SnpLaunchStart(policy=policy).pack())
    sev_command(machine, vm_fd, SevCommand.SNP_LAUNCH_START, start, sev_fd)
    for page, kind in enumerate((PageType.NORMAL, PageType.SECRETS)):
        update = SnpLaunchUpdate(
            gfn_start=base // PAGE_SIZE + page,
            uaddr=address + page * PAGE_SIZE,
            len=PAGE_SIZE,
            type=kind,
        )
        sev_command(machine, vm_fd, SevCommand.SNP_LAUNCH_UPDATE, bytearray(update.pack()), sev_fd)
    finish = bytearray(SnpLaunchFinish(host_data=host_data).pack())
    sev_command(machine, vm_fd, SevCommand.SNP_LAUNCH_FINISH, finish, sev_fd)
    runs = tuple(RunView(memoryview(machine.mmap_run(fd))) for fd in vcpu_fds)
    return ReferenceVm(machine, vm_fd, sev_fd, memory, base, vcpu_fds, runs)


def _enable_exit_hypercall() -> bytearray:
    return bytearray(struct.pack("<IIQ88x", Cap.EXIT_HYPERCALL, 0, HYPERCALLS))
