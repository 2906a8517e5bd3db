# SPDX-License-Identifier: Apache-2.0
"""KVM_RUN and VMGEXIT of the kernel and of the emulator, on the same input.

A sequence is the life of one VM: guest exits, answers of its VMM, memory that goes away,
firmware that fails. Both sides go through it step by step. After each step, all that the
guest, the VMM or the firmware can see must be the same on both sides.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from snpcerts.abi import kvm as abi
from snpcerts.abi.kvm import Ioctl, UserspaceMemoryRegion2, VmType
from snpcerts.abi.psp import SevStatus
from snpcerts.emulator.guest.program import GuestCpu, Program, Vmgexit, WaitUntil
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.kvm.release import NEWEST
from snpcerts.emulator.kvm.vcpu import Vcpu
from snpcerts.emulator.kvm.vm import Vm
from snpcerts.emulator.psp.firmware import Firmware, FirmwareError
from snpcerts.emulator.psp.sev_device import SevDevice
from snpcerts.emulator.syscall.device import Caller, NewDescriptor, Pending

PAGE: Final = 4096
PAGES: Final = 32
MAPPED, NO_SLOT, UNMAPPED = 0, 1, 2
IN_GUEST: Final = -512  # KVM_RUN has not returned
DEV_SEV, CLOSED, OTHER = 0, 1, 2
USER: Final = 0x1000_0000  # where the VMM has its guest's memory
RUN_BYTES: Final = abi.RUN_SIZE
CPUID: Final = {
    0: (0x10, 1, 2, 3),
    1: (0xA00F11, 4, 0x80202001, 5),
    0x8000001F: (0x1B, 0x173, 6, 7),
}
MSRS: Final = {0xDA0: 0, 0x4B564D01: 0x11_2233_4455, 0xC000_0080: 0x100}


@dataclass(frozen=True, slots=True)
class Setting:
    """How the VM of a sequence is set up."""

    snp: bool
    certs: bool
    irqchip: bool
    hypercalls: bool
    ghcb_version: int
    features: int
    second: bool
    no_slot: frozenset[int]
    sev_fd: int


@dataclass(slots=True)
class FirmwareScript:
    """How the firmware answers each command. ``code`` is what the driver returns to KVM."""

    code: int = 0
    status: int = 0
    response: bytes = bytes(PAGE)


@dataclass(frozen=True, slots=True)
class Seen:
    """The observable state after a step."""

    result: int
    msr: int
    run: bytes
    pio: bytes
    memory: bytes
    commands: int
    request: bytes

    def differences(self, other: Seen) -> dict[str, str]:
        """Describe each field that differs: both values, by the field's name."""
        found = {}
        for name in ("result", "msr", "commands"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                found[name] = f"{ours:#x} {theirs:#x}"
        for name in ("run", "pio", "memory", "request"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
                at -= at % 8
                found[name] = f"at {at:#x}: {ours[at : at + 8].hex()} {theirs[at : at + 8].hex()}"
        return found


class KernelKvm:
    """The kernel's side: the functions that were cut out of a release."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._library = library

        def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            found = getattr(library, f"oracle_{name}")
            found.restype, found.argtypes = result, arguments
            return cast("Callable[..., Any]", found)

        def area(name: str, size: int) -> memoryview:
            at = function(name, ctypes.c_void_p)()
            return memoryview((ctypes.c_ubyte * size).from_address(at)).cast("B")

        self.memory = area("memory", PAGES * PAGE)
        self.states = area("page_states", PAGES)
        self.run_page = area("run_page", 3 * PAGE)
        self._firmware = area("firmware", 8 + PAGE + 4)
        self._reached = area("reached", 4 + PAGE)
        self._cpuid = area("cpuid", 4 + 16 * 20)
        self._msrs = area("msrs", 8 + 8 * 16)
        self._msr = function("msr", ctypes.c_uint64)
        self._set_page = function("set_page", None, ctypes.c_uint, ctypes.c_uint8)
        self._vmgexit = function("vmgexit", None, ctypes.c_uint64)
        self._run = function("run", ctypes.c_int)
        self._go_on = function("go_on", ctypes.c_int)
        self._reset = function(
            "reset",
            None,
            *(4 * (ctypes.c_bool,)),
            ctypes.c_uint16,
            ctypes.c_uint64,
            ctypes.c_bool,
        )
        self.warnings = ctypes.c_int.in_dll(library, "oracle_warnings")

    def reset(self, setting: Setting) -> None:
        """Begin with a new VM."""
        self._reset(
            setting.snp,
            setting.certs,
            setting.irqchip,
            setting.hypercalls,
            setting.ghcb_version,
            setting.features,
            setting.second,
        )
        for page in setting.no_slot:
            self._set_page(page, NO_SLOT)
        struct.pack_into("<I", self._firmware, 8 + PAGE, setting.sev_fd)
        table = b"".join(struct.pack("<5I", number, *each) for number, each in CPUID.items())
        self._cpuid[: 4 + len(table)] = struct.pack("<I", len(CPUID)) + table
        listed = b"".join(struct.pack("<I4xQ", *each) for each in MSRS.items())
        self._msrs[: 8 + len(listed)] = struct.pack("<I4x", len(MSRS)) + listed

    def script(self, script: FirmwareScript) -> None:
        """Set what the firmware does from now on."""
        struct.pack_into("<iI", self._firmware, 0, script.code, script.status)
        self._firmware[8 : 8 + PAGE] = script.response

    def write(self, gpa: int, data: bytes) -> None:
        """The guest or the VMM writes to guest memory."""
        self.memory[gpa : gpa + len(data)] = data

    def unmap(self, page: int) -> None:
        """The VMM unmaps a page of guest memory."""
        self._set_page(page, UNMAPPED)

    def map(self, page: int) -> None:
        """The VMM maps a new page of guest memory."""
        self._set_page(page, MAPPED)

    def vmgexit(self, msr: int, *, inside: bool) -> int | None:
        """The guest exits. If it is in KVM_RUN (``inside``), return its result, or IN_GUEST."""
        self._vmgexit(msr)
        return int(self._go_on()) if inside else None

    def run(self) -> int:
        """Call KVM_RUN; return its result, or IN_GUEST."""
        return int(self._run())

    def seen(self, result: int) -> Seen:
        """The observable state now."""
        memory = bytes(self.memory)
        reached = bytes(self._reached)
        return Seen(
            result,
            self._msr(),
            bytes(self.run_page[:RUN_BYTES]),
            bytes(self.run_page[PAGE : 2 * PAGE]),
            memory,
            int.from_bytes(reached[:4], "little"),
            reached[4:],
        )


class _UserMemory:
    """The VMM's memory. All of it is guest memory."""

    def __init__(self) -> None:
        self.bytes = bytearray(PAGES * PAGE)
        self.mapped = [True] * PAGES

    def _at(self, address: int, size: int) -> int:
        at = address - USER
        if at < 0 or at + size > PAGES * PAGE:
            raise OSError(errno.EFAULT, "not mapped")
        for page in range(at // PAGE, (at + size - 1) // PAGE + 1):
            if not self.mapped[page]:
                raise OSError(errno.EFAULT, "not mapped")
        return at

    def read(self, address: int, size: int) -> bytes:
        at = self._at(address, size)
        return bytes(self.bytes[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        at = self._at(address, len(data))
        self.bytes[at : at + len(data)] = data


class _ScriptedFirmware:
    """Serves guest requests as the script says."""

    def __init__(self) -> None:
        self.script = FirmwareScript()
        self.commands = 0
        self.request = bytes(PAGE)

    def guest_request(self, context: object, request: bytes) -> bytes:  # noqa: ARG002 - Firmware
        self.commands += 1
        self.request = request
        if self.script.code and not self.script.status:
            raise OSError(-self.script.code, "the PSP does not answer")
        if self.script.status:
            raise FirmwareError(SevStatus(self.script.status), "as scripted")
        return self.script.response

    def decommission(self, context: object) -> None:
        """Do nothing. The emulator calls this when it closes a VM."""


class _Guest:
    def __init__(self) -> None:
        self.exits: deque[int] = deque()

    def program(self, cpu: GuestCpu) -> Program:
        while cpu.index == 0:
            yield WaitUntil(lambda: bool(self.exits))
            yield Vmgexit(self.exits.popleft())
        yield WaitUntil(lambda: False)


class _EsVm(Vm):
    """A VM that the exit handlers take for SEV-ES, a type that the emulator does not have."""

    snp = property(lambda _: False)
    awaits_init = property(lambda _: False)


class EmulatedKvm:
    """The emulator, from KVM_RUN downwards."""

    def __init__(self) -> None:
        self.firmware = _ScriptedFirmware()
        self._pending: Pending | None = None

    def reset(self, setting: Setting) -> None:
        """Begin with a new VM, already launched."""
        self._pending = None
        self.firmware.__init__()  # type: ignore[misc] # as new
        self._memory = _UserMemory()
        self._guest = _Guest()
        platform = Platform(cast("Firmware", self.firmware))
        sev = SevDevice(platform.firmware)
        found = {DEV_SEV: sev, OTHER: self}.get(setting.sev_fd)
        self._caller = Caller(
            self._memory, cast("Any", lambda number: found if number == 7 else None), pid=1
        )
        kind = Vm if setting.snp else _EsVm
        self.vm = vm = kind(
            platform,
            VmType.SNP,
            1,
            lambda _: self._guest,
            NEWEST,
        )
        vm.initialised = True
        vm.sev_fd = 7
        vm.vmsa_features = setting.features
        vm.ghcb_version = setting.ghcb_version
        vm.certs_enabled = setting.certs
        vm.irqchip = setting.irqchip
        vm.hypercalls = 1 << abi.HC_MAP_GPA_RANGE if setting.hypercalls else 0
        vm.context = cast("Any", object())
        vm.set_cpuid({(function, None): each for function, each in CPUID.items()})
        self.vcpu = self._create(0)
        if setting.second:
            self._create(1)
        self.vcpu.mp_state = 0
        self.run_page = memoryview(mmap.mmap(self.vcpu.run_memfd, abi.VCPU_MMAP_SIZE))
        self._slots(setting.no_slot)
        self._no_slot = setting.no_slot

    def _create(self, number: int) -> Vcpu:
        made = self.vm.ioctl(self._caller, Ioctl.CREATE_VCPU, number)
        assert isinstance(made, NewDescriptor)
        vcpu = made.device
        assert isinstance(vcpu, Vcpu)
        vcpu.launched = True
        entries = b"".join(struct.pack("<I4xQ", *each) for each in MSRS.items())
        self._memory.write(USER, struct.pack("<I4x", len(MSRS)) + entries)
        assert vcpu.ioctl(self._caller, Ioctl.SET_MSRS, USER) == len(MSRS)
        self._memory.bytes[:PAGE] = bytes(PAGE)
        return vcpu

    def _slots(self, absent: frozenset[int]) -> None:
        number, start = 0, 0
        for page in range(PAGES + 1):
            if page == PAGES or page in absent:
                if page > start:
                    self.vm.slots.set(
                        UserspaceMemoryRegion2(
                            number, 0, start * PAGE, (page - start) * PAGE, USER + start * PAGE
                        )
                    )
                    number += 1
                start = page + 1

    def close(self) -> None:
        """Free what the VM holds."""
        for vcpu in list(self.vm.vcpus.values()):
            vcpu.close()
        self.vm.close()

    def script(self, script: FirmwareScript) -> None:
        self.firmware.script = script

    def write(self, gpa: int, data: bytes) -> None:
        self._memory.bytes[gpa : gpa + len(data)] = data

    def unmap(self, page: int) -> None:
        self._memory.mapped[page] = False
        self._memory.bytes[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)

    def map(self, page: int) -> None:
        self._memory.mapped[page] = True
        self._memory.bytes[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)

    def vmgexit(self, msr: int, *, inside: bool) -> int | None:
        self._guest.exits.clear()  # one that was never carried out
        self._guest.exits.append(msr)
        return self._result(self._poll) if inside else None

    def run(self) -> int:
        return self._result(lambda: self.vcpu.ioctl(self._caller, Ioctl.RUN, 0))

    def _poll(self) -> Any:
        assert self._pending is not None
        result = self._pending.poll()
        return self._pending if result is None else result

    def _result(self, call: Callable[[], Any]) -> int:
        try:
            result = call()
        except OSError as failed:
            self._pending = None
            return -(failed.errno or 0)
        if isinstance(result, int):
            self._pending = None
            return result
        self._pending = result
        return IN_GUEST

    def seen(self, result: int) -> Seen:
        page = self.run_page
        return Seen(
            result,
            self.vcpu.requests.msr,
            bytes(page[:RUN_BYTES]),
            bytes(page[PAGE : 2 * PAGE]),
            bytes(self._memory.bytes),
            self.firmware.commands,
            self.firmware.request,
        )
