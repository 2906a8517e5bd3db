# SPDX-License-Identifier: Apache-2.0
"""Compares the kernel's KVM_MEMORY_ENCRYPT_OP with the emulator's, for a VM during its launch."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

from snpcerts.abi.kvm import MEM_GUEST_MEMFD, Ioctl, SevCommand, UserspaceMemoryRegion2, VmType
from snpcerts.abi.psp import SevStatus
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.guest.memory_slots import GuestMemfd
from snpcerts.emulator.kvm.kvm_device import KvmDevice
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.kvm.release import KernelRelease
from snpcerts.emulator.kvm.vm import Vm
from snpcerts.emulator.psp.error import FirmwareError
from snpcerts.emulator.psp.firmware import CpuidPageError, Firmware
from snpcerts.emulator.psp.sev_device import SevDevice
from snpcerts.emulator.syscall.device import Caller, NewDescriptor

from .difference import DifferenceError
from .user import PAGE, USER, USER_PAGES, UserSide, weighted

_COMMAND, _DATA, _SOURCE = USER, USER + PAGE, USER + 2 * PAGE
_PRIVATE_PAGES: Final = 8
_SEV_FD, _OTHER_FD, _CLOSED_FD = 5, 6, 7
_POLICY: Final = 0x30000
_CPUID_PAGE: Final = b"\xc5" * PAGE  # what the firmware corrects a CPUID page to
_NORMAL, _ZERO, _CPUID = 1, 3, 6
_FAILURES: Final = tuple(int(each) for each in SevStatus)[1:]
_NAMES: Final = {int(each): each.name for each in SevCommand}


class _Script:
    """The status with which the firmware answers each command."""

    def __init__(self) -> None:
        self.start = self.update = self.finish = 0


class _Firmware:
    """The firmware on the emulator's side. It answers as the script says."""

    def __init__(self, script: _Script) -> None:
        self.script = script
        self.commands = 0
        self.payload = b""

    def _answer(self, status: int, payload: bytes) -> None:
        self.commands += 1
        self.payload = payload
        if status:
            raise FirmwareError(SevStatus(status), "as scripted")

    def launch_start(self, policy: int, *, gosvw: bytes, desired_tsc_khz: int) -> object:
        asked = struct.pack("<Q", policy) + gosvw + struct.pack("<I", desired_tsc_khz)
        self._answer(self.script.start, asked)
        return object()

    def launch_update(self, _: object, gpa: int, kind: int, contents: bytes) -> bytes | None:  # noqa: ARG002 - Firmware
        if int(kind) == 2:  # a VMSA
            self._answer(0, bytes([2]))
            return None
        if self.script.update == SevStatus.INVALID_PARAM and kind == _CPUID:
            self.commands += 1
            self.payload = bytes([kind])
            raise CpuidPageError(_CPUID_PAGE)
        self._answer(self.script.update, bytes([kind]))
        return None

    def launch_finish(
        self,
        _: object,
        host_data: bytes,
        *,
        id_block: tuple[bytes, bytes] | None,
        author_key_en: bool,
        vcek_disabled: bool,
    ) -> None:
        flags = bytes([id_block is not None, author_key_en, vcek_disabled])
        block = b"" if id_block is None else id_block[0]
        self._answer(self.script.finish, host_data + flags.ljust(8, b"\0") + block)

    def decommission(self, context: object) -> None:
        """Do nothing. The emulator calls this when it closes a VM."""


class _Life:
    """One VM and its launch, complete or not."""

    def __init__(self, library: ctypes.CDLL, series: str, seed: str) -> None:
        self._pick = random.Random(seed)
        self._library = library
        self._story: list[str] = []
        self._script = _Script()
        self._firmware = _Firmware(self._script)
        platform = Platform(cast("Firmware", self._firmware))
        self._vm = Vm(platform, VmType.SNP, 1, LinuxGuest, KernelRelease(series))
        self._devices = {_SEV_FD: SevDevice(platform.firmware), _OTHER_FD: self._vm}
        self._closing: list[Any] = [self._vm]
        self.reached: set[str] = set()

    def live(self) -> None:
        library, pick, vm = self._library, self._pick, self._vm
        library.oracle_reset()
        khz = pick.choice((2_000_000, pick.randrange(1, 1 << 28)))
        library.oracle_tsc_khz(khz)
        user = UserSide(library)
        vm.ioctl(self._caller(user), Ioctl.SET_TSC_KHZ, khz)
        self._attribute(user)
        memfd = GuestMemfd(vm, _PRIVATE_PAGES * PAGE)
        region = UserspaceMemoryRegion2(
            0, MEM_GUEST_MEMFD, 0, _PRIVATE_PAGES * PAGE, _SOURCE, guest_memfd=9
        )
        vm.slots.set(region, lambda: memfd)
        shared = bytes(pick.random() < 0.1 for _ in range(_PRIVATE_PAGES))
        ctypes.memmove(library.oracle_shared(), shared, _PRIVATE_PAGES)
        for page, is_shared in enumerate(shared):
            if not is_shared:
                vm.private.add(page * PAGE, (page + 1) * PAGE)
        usual: list[int | str] = [22, 103, "vcpu", 100, 101, 101, 102]
        try:
            for step in usual:
                if pick.random() < 0.07:
                    continue
                if pick.random() < 0.25:
                    self._step(user, pick.choice([*usual, 0, 1, 2, 7, 16, 21, 22, 23, 99, 104]))
                self._step(user, step)
        finally:
            for each in reversed(self._closing):
                each.close()

    def _attribute(self, user: UserSide) -> None:
        """Compare KVM_GET_DEVICE_ATTR on ``/dev/kvm``."""
        group, attribute = self._pick.choice((1, 1, 1, 2)), self._pick.randrange(5)
        value = ctypes.c_uint64()
        kernel = int(self._library.oracle_attribute(group, attribute, ctypes.byref(value)))
        user.memory.write(_DATA, struct.pack("<IIQQ", 0, group, attribute, _SOURCE))
        device = KvmDevice(self._vm.platform)
        request = Ioctl.GET_DEVICE_ATTR
        emulator = user.result(lambda: device.ioctl(self._caller(user), request, _DATA))
        ours = int.from_bytes(user.memory.read(_SOURCE, 8), "little")
        if (kernel, kernel or value.value) != (emulator, kernel or ours):
            found = {"value": f"{kernel} {value.value:#x} {emulator} {ours:#x}"}
            raise DifferenceError(f"attribute {group}/{attribute}: value", found, self._story)

    def _step(self, user: UserSide, step: int | str) -> None:
        if step == "vcpu":
            if len(self._vm.vcpus) < 2:
                self._library.oracle_create_vcpu()
                made = self._vm.ioctl(self._caller(user), Ioctl.CREATE_VCPU, len(self._vm.vcpus))
                assert isinstance(made, NewDescriptor)
                self._closing.append(made.device)
                self._story.append("vcpu")
            return
        self._command(user, int(step))

    def _caller(self, user: UserSide) -> Caller:
        return Caller(user.memory, cast("Any", self._devices.get), pid=1)

    def _command(self, user: UserSide, command: int) -> None:
        pick = self._pick
        for name in ("start", "update", "finish"):
            status = weighted(pick, ((0, 85), (0x16, 8), (pick.choice(_FAILURES), 7)))
            setattr(self._script, name, status)
        script = self._script
        fds = struct.pack("<4I", 0, script.start, script.update, script.finish)
        ctypes.memmove(self._library.oracle_firmware(), fds, len(fds))
        for page in range(USER_PAGES):
            user.map(page, mapped=page < 2 or pick.random() > 0.04)
        user.write(USER, pick.randbytes(64) * (USER_PAGES * PAGE // 64))
        data = weighted(pick, ((_DATA, 94), (0, 3), (USER + USER_PAGES * PAGE - 8, 3)))
        fd = weighted(pick, ((_SEV_FD, 92), (_OTHER_FD, 4), (_CLOSED_FD, 4)))
        user.write(_DATA, self._structure(command))
        user.write(_COMMAND, struct.pack("<IIQII", command, pick.getrandbits(32), data, 0x1234, fd))
        argument = weighted(pick, ((_COMMAND, 97), (0, 1), (8, 2)))
        self._story.append(
            f"command {command} data {data:#x} fd {fd}: {user.peek(_DATA, 64).hex()} "
            f"({script.start:#x} {script.update:#x} {script.finish:#x})"
        )
        before = self._firmware.commands
        self._firmware.payload = b""
        ctypes.memset(self._library.oracle_reached(), 0, 8 + 256)
        kernel = int(self._library.oracle_ioctl(argument))
        request = Ioctl.MEMORY_ENCRYPT_OP
        emulator = user.result(lambda: self._vm.ioctl(self._caller(user), request, argument))
        self._story.append(f"-> {kernel}")
        found = user.differences()
        if kernel != emulator:
            found["result"] = f"{kernel} {emulator}"
        reached = ctypes.string_at(self._library.oracle_reached(), 8 + 256)
        commands = int.from_bytes(reached[:4], "little")
        if commands != self._firmware.commands - before:
            found["commands"] = f"{commands} {self._firmware.commands - before}"
        elif commands and reached[8:] != self._firmware.payload.ljust(256, b"\0"):
            found["payload"] = f"{reached[8:56].hex()} {self._firmware.payload[:48].hex()}"
        state = (bool(self._library.oracle_has_context()), bool(self._library.oracle_certs()))
        ours = (self._vm.context is not None, self._vm.certs_enabled)
        if state != ours:
            found["state"] = f"{state} {ours}"
        name = _NAMES.get(command, str(command))
        if kernel == 0 and argument:
            self.reached.add(name)
        if found:
            raise DifferenceError(f"{name}: {' '.join(sorted(found))}", found, self._story)

    def _structure(self, command: int) -> bytes:
        pick = self._pick

        def rarely(value: int, usual: int = 0, percent: int = 5) -> int:
            return weighted(pick, ((usual, 100 - percent), (value, percent)))

        def source() -> int:
            return weighted(
                pick,
                ((_SOURCE, 80), (0, 7), (_SOURCE + 8, 4), (USER + 14 * PAGE, 5), (1 << 48, 4)),
            )

        match command:
            case SevCommand.INIT2:
                features = rarely(pick.getrandbits(12), pick.choice((0, 1 << 5, 1 << 9)), 8)
                version = rarely(pick.randrange(4), pick.choice((0, 2)), 8)
                return struct.pack("<QIHH32x", features, rarely(1), version, 0)
            case SevCommand.SNP_LAUNCH_START:
                policy = weighted(
                    pick,
                    (
                        (_POLICY, 85),
                        (0x10000, 4),
                        (1 << 18 | _POLICY, 4),
                        (pick.getrandbits(64), 7),
                    ),
                )
                head = struct.pack("<Q", policy) + pick.randbytes(16)
                return head + struct.pack("<H6x32x", rarely(1))
            case SevCommand.SNP_LAUNCH_UPDATE:
                gfn = weighted(pick, ((pick.randrange(_PRIVATE_PAGES), 92), (8, 4), (1 << 52, 4)))
                length = weighted(
                    pick,
                    (
                        (PAGE, 40),
                        (pick.randrange(1, 10) * PAGE, 48),
                        (0, 4),
                        (100, 4),
                        (1 << 40, 4),
                    ),
                )
                kind = rarely(pick.randrange(256), pick.choice((1, 1, 3, 4, 5, 6)))
                return struct.pack("<QQQBBHI32x", gfn, source(), length, kind, 0, rarely(1), 0)
            case SevCommand.SNP_LAUNCH_FINISH:
                flags = bytes([pick.choice((0, 0, 1)), pick.choice((0, 1)), pick.choice((0, 1))])
                head = struct.pack("<QQ", source(), source()) + flags + pick.randbytes(32)
                return head + struct.pack("<3xH32x", rarely(1))
            case _:
                return pick.randbytes(64)


def lives(
    path: Path, seed: int, numbers: Iterable[int]
) -> Iterator[tuple[int, set[str], DifferenceError | None]]:
    """Yield for each VM: its number, the commands that succeeded, and the difference, if any."""
    library = ctypes.CDLL(str(path))
    library.oracle_reset.restype = None
    library.oracle_create_vcpu.restype = None
    library.oracle_tsc_khz.restype = None
    library.oracle_tsc_khz.argtypes = (ctypes.c_uint32,)
    library.oracle_ioctl.argtypes = (ctypes.c_uint64,)
    library.oracle_attribute.argtypes = (ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p)
    for name in ("has_context", "certs"):
        getattr(library, f"oracle_{name}").restype = ctypes.c_bool
    for name in ("firmware", "reached", "shared"):
        getattr(library, f"oracle_{name}").restype = ctypes.c_void_p
    series = ".".join(path.name.split("-")[1].split(".")[:2])
    for number in numbers:
        life = _Life(library, series, f"{seed}:{number}")
        found = None
        try:
            life.live()
        except DifferenceError as differs:
            found = differs
        yield number, life.reached, found
