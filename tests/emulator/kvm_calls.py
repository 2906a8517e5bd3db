# SPDX-License-Identifier: Apache-2.0
"""A process on the KVM model: descriptors, ioctls, and memory that can be taken away."""

from __future__ import annotations

from typing import Any

from snpcerts.abi.cstruct import CStruct
from snpcerts.abi.kvm import (
    MEM_GUEST_MEMFD,
    CreateGuestMemfd,
    Ioctl,
    MemoryAttributes,
    SevCmd,
    SevInit,
    SnpLaunchFinish,
    SnpLaunchStart,
    SnpLaunchUpdate,
    UserspaceMemoryRegion2,
)
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.guest.program import GuestFactory
from snpcerts.emulator.kvm.kvm_device import KvmDevice
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.kvm.release import NEWEST, KernelRelease
from snpcerts.emulator.kvm.vcpu import Vcpu
from snpcerts.emulator.kvm.vm import Vm
from snpcerts.emulator.psp.sev_device import SevDevice
from snpcerts.emulator.syscall.device import Caller, Device, NewDescriptor, Pending, Result
from tests.emulator.kvm_rig import Arena, make_platform

POLICY = 1 << 16 | 1 << 17
COMMAND, DATA = 0x10000, 0x11000  # where structures for ioctls are put
BAD = 0x9000_0000  # an address that is not mapped
SEV_FD, MEMFD = 5, 6
MEMORY, MEMORY_SIZE = 0x14000, 0x1C000  # what the VM gets as its memory, from GPA 0


class Process:
    """A caller with 256 KiB of memory."""

    def __init__(
        self,
        platform: Platform | None = None,
        guest: GuestFactory = LinuxGuest,
        kernel: KernelRelease = NEWEST,
    ) -> None:
        self.platform = platform or make_platform()
        self.arena = Arena(0x20000)
        self.devices: dict[int, Device] = {SEV_FD: SevDevice(self.platform.firmware)}
        self.signal = False
        self.kvm = KvmDevice(self.platform, guest, kernel)

    def caller(self, pid: int = 1) -> Caller:
        return Caller(self.arena, self.devices.get, pid=pid, interrupted=lambda _: self.signal)

    def ioctl(self, device: Device, request: int, argument: int | CStruct = 0) -> Result:
        if isinstance(argument, CStruct):
            self.arena.write(COMMAND, argument.pack())
            argument = COMMAND
        return device.ioctl(self.caller(), request, argument)

    def create_vm(self, kind: int = 4) -> Vm:
        made = self.ioctl(self.kvm, Ioctl.CREATE_VM, kind)
        assert isinstance(made, NewDescriptor)
        assert isinstance(made.device, Vm)
        return made.device

    def create_vcpu(self, vm: Vm, number: int = 0) -> Vcpu:
        made = self.ioctl(vm, Ioctl.CREATE_VCPU, number)
        assert isinstance(made, NewDescriptor)
        assert isinstance(made.device, Vcpu)
        assert made.shared is not None
        return made.device

    def sev(
        self,
        vm: Vm,
        command: int,
        data: CStruct | int | None = None,
        *,
        sev_fd: int = SEV_FD,
        error: int = 0,
    ) -> None:
        pointer = data if isinstance(data, int) else DATA if data is not None else 0
        if isinstance(data, CStruct):
            self.arena.write(DATA, data.pack())
        given = SevCmd(id=command, data=pointer, error=error, sev_fd=sev_fd)
        assert self.ioctl(vm, Ioctl.MEMORY_ENCRYPT_OP, given) == 0

    def command(self) -> SevCmd:
        """The command structure in its current state."""
        return SevCmd.unpack(self.arena.read(COMMAND, SevCmd.SIZE))

    def init2(self, vm: Vm, **fields: Any) -> None:
        self.sev(vm, 22, SevInit(**fields))

    def give_memory(self, vm: Vm) -> None:
        """Give the VM one slot at GPA 0, and make all of its pages private."""
        made = self.ioctl(vm, Ioctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(size=MEMORY_SIZE))
        assert isinstance(made, NewDescriptor)
        self.devices[MEMFD] = made.device
        region = UserspaceMemoryRegion2(
            0, MEM_GUEST_MEMFD, 0, MEMORY_SIZE, MEMORY, guest_memfd=MEMFD
        )
        assert self.ioctl(vm, Ioctl.SET_USER_MEMORY_REGION2, region) == 0
        private = MemoryAttributes(0, MEMORY_SIZE, 8)
        assert self.ioctl(vm, Ioctl.SET_MEMORY_ATTRIBUTES, private) == 0

    def start(self, vm: Vm, **how: Any) -> None:
        self.sev(vm, 100, SnpLaunchStart(**{"policy": POLICY, **how}))

    def update(self, vm: Vm, *, sev_fd: int = SEV_FD, **how: Any) -> None:
        fields = {"uaddr": MEMORY, "len": 0x1000, "type": 1, **how}
        self.sev(vm, 101, SnpLaunchUpdate(**fields), sev_fd=sev_fd)

    def finish(self, vm: Vm, *, sev_fd: int = SEV_FD, **how: Any) -> None:
        self.sev(vm, 102, SnpLaunchFinish(**how), sev_fd=sev_fd)

    def launch(self, *, certs: bool = True, vcpus: int = 1) -> tuple[Vm, list[Vcpu]]:
        """Create a VM and launch it, so that its first KVM_RUN can follow."""
        vm = self.create_vm()
        self.init2(vm)
        self.give_memory(vm)
        if certs:
            self.sev(vm, 103)
        made = [self.create_vcpu(vm, number) for number in range(vcpus)]
        self.start(vm)
        self.update(vm)
        self.update(vm, gfn_start=1, type=5)
        self.finish(vm)
        return vm, made

    def run(self, vcpu: Vcpu, argument: int = 0) -> int | Pending:
        result = vcpu.ioctl(self.caller(), Ioctl.RUN, argument)
        assert not isinstance(result, NewDescriptor)
        return result
