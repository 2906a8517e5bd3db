# SPDX-License-Identifier: Apache-2.0
"""Compares ``/dev/sev`` of kernel and emulator: every command, with good and bad structures."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Final, cast

from snpcerts.abi.psp import (
    SEV_ISSUE_CMD,
    Command,
    PlatformStatus,
    SevStatus,
    SnpConfig,
    SnpPlatformStatus,
)
from snpcerts.emulator.psp.chip_model import ApiVersion
from snpcerts.emulator.psp.error import FirmwareError
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.psp.sev_device import SevDevice
from snpcerts.emulator.syscall.device import Caller

from .difference import DifferenceError
from .user import PAGE, USER, USER_PAGES, UserSide, weighted

_COMMAND: Final = USER  # where struct sev_issue_cmd is
_DATA, _BLOB, _OTHER = USER + PAGE, USER + 2 * PAGE, USER + 8 * PAGE
_PAYLOAD: Final = 512
_BLOB_SIZE: Final = 4096
_FAILURES: Final = tuple(int(each) for each in SevStatus)[1:]
_COMMANDS: Final = tuple(Command)
_NAMES: Final = {int(each): each.name for each in Command}


class _Script:
    """The data that the firmware has, and the status with which it answers."""

    def __init__(self, pick: random.Random) -> None:
        self.status = weighted(pick, ((0, 75), (pick.choice(_FAILURES), 25)))
        self.platform = bytearray(pick.randbytes(PlatformStatus.SIZE))
        self.platform[2] = pick.choice((0, 1, 2))  # the platform's state
        self.snp = pick.randbytes(SnpPlatformStatus.SIZE)
        self.lengths = (
            pick.choice((64, 64, 128)),
            pick.choice((64, 0x824)),
            pick.choice((32, 2064)),
        )
        self.blob = pick.randbytes(_BLOB_SIZE)

    def pack(self) -> bytes:
        head = struct.pack("<I", self.status) + bytes(self.platform) + self.snp
        return head + struct.pack("<3I", *self.lengths) + self.blob


class _Firmware:
    """The firmware below the emulator's driver. It answers as the script says."""

    def __init__(self, script: _Script, *, initialized: bool, version: ApiVersion) -> None:
        self._script = script
        self.state = SimpleNamespace(initialized=initialized, version=version)
        self.payload = bytes(_PAYLOAD)

    def _answer(self, payload: bytes = b"") -> None:
        self.payload = payload.ljust(_PAYLOAD, b"\0")
        if self._script.status:
            raise FirmwareError(SevStatus(self._script.status), "as scripted")

    def platform_status(self) -> PlatformStatus:
        self._answer()
        return PlatformStatus.unpack(bytes(self._script.platform))

    def snp_platform_status(self) -> SnpPlatformStatus:
        self._answer()
        return SnpPlatformStatus.unpack(self._script.snp)

    def get_id(self) -> bytes:
        self._answer()
        return self._script.blob[: self._script.lengths[0]]

    def pdh_cert_export(self) -> tuple[bytes, bytes]:
        self._answer()
        _, pdh, chain = self._script.lengths
        return self._script.blob[:pdh], self._script.blob[1 : 1 + chain]

    def snp_commit(self) -> None:
        self._answer()

    def snp_set_config(self, config: SnpConfig) -> None:
        self._answer(config.pack())

    def snp_vlek_load(self, blob: bytes) -> None:
        self._answer(blob)


class _Life:
    """A few commands on one platform."""

    def __init__(self, library: ctypes.CDLL, seed: str) -> None:
        self._pick = random.Random(seed)
        self._library = library
        self._story: list[str] = []
        self.reached: set[str] = set()

    def live(self) -> None:
        pick = self._pick
        initialized = pick.random() < 0.85
        version = ApiVersion(*weighted(pick, (((1, 55, 1), 85), ((0, 16, 0), 8), ((0, 15, 0), 7))))
        user = UserSide(self._library)
        self._library.oracle_reset(
            initialized, version.major, version.minor, 1 if initialized else 0
        )
        for _ in range(pick.randint(1, 4)):
            script = _Script(pick)
            firmware = _Firmware(script, initialized=initialized, version=version)
            self._firmware(script)
            self._one(user, SevDevice(cast("Firmware", firmware)), firmware)

    def _firmware(self, script: _Script) -> None:
        packed = script.pack()
        ctypes.memmove(self._library.oracle_firmware(), packed, len(packed))
        self._story.append(f"firmware: status {script.status:#x}, lengths {script.lengths}")

    def _one(self, user: UserSide, device: SevDevice, firmware: _Firmware) -> None:
        pick = self._pick
        command = weighted(
            pick, ((pick.choice(_COMMANDS), 95), (pick.choice((13, 14, 1 << 31)), 5))
        )
        writable = pick.random() < 0.85
        request = SEV_ISSUE_CMD if pick.random() < 0.97 else pick.getrandbits(32)
        address = weighted(pick, ((_COMMAND, 95), (0, 2), (_COMMAND + USER_PAGES * PAGE - 4, 3)))
        data = weighted(
            pick, ((_DATA, 85), (0, 8), (USER + USER_PAGES * PAGE - 2, 4), (1 << 62, 3))
        )
        for page in range(USER_PAGES):
            user.map(page, mapped=page == 0 or pick.random() > 0.04)
        user.write(USER, pick.randbytes(64) * (USER_PAGES * PAGE // 64))
        user.write(_DATA, self._structure(command))
        user.write(_COMMAND, struct.pack("<IQI", command, data, pick.choice((0, 0x1234))))
        self._story.append(
            f"ioctl {request:#x} command {command} data {data:#x} writable {writable}: "
            f"{user.peek(_DATA, 40).hex()}"
        )
        firmware.payload = bytes(_PAYLOAD)
        ctypes.memset(self._library.oracle_reached(), 0, 8 + _PAYLOAD)
        kernel = int(self._library.oracle_ioctl(writable, request, address))
        caller = Caller(user.memory, lambda _: None, writable=writable)
        emulator = user.result(lambda: device.ioctl(caller, request, address))
        name = _NAMES.get(command, "unknown")
        if kernel == 0:
            self.reached.add(name)
        found = user.differences()
        if kernel != emulator:
            found["result"] = f"{kernel} {emulator}"
        theirs = ctypes.string_at(self._library.oracle_reached() + 8, _PAYLOAD)
        if theirs != firmware.payload:
            found["firmware"] = f"{theirs[:32].hex()} {firmware.payload[:32].hex()}"
        if found:
            raise DifferenceError(f"{name}: {' '.join(sorted(found))}", found, self._story)

    def _structure(self, command: int) -> bytes:
        pick = self._pick

        def address(usual: int) -> int:
            return weighted(
                pick, ((usual, 85), (0, 6), (1 << 47, 5), (USER + USER_PAGES * PAGE - 8, 4))
            )

        def length() -> int:
            return weighted(
                pick,
                (
                    (64, 20),
                    (128, 15),
                    (0x824, 15),
                    (4096, 20),
                    (0, 10),
                    (0x4000, 5),
                    (0x4001, 5),
                    (1, 3),
                    (4 << 20, 3),
                    (5 << 20, 3),
                    (pick.getrandbits(32), 5),
                ),
            )

        match command:
            case Command.GET_ID2 | Command.PEK_CSR:
                return struct.pack("<QI", address(_BLOB), length())
            case Command.PDH_CERT_EXPORT | Command.PEK_CERT_IMPORT:
                return struct.pack("<QIQI", address(_BLOB), length(), address(_OTHER), length())
            case Command.SNP_VLEK_LOAD:
                size = weighted(pick, ((16, 90), (pick.getrandbits(32), 10)))
                version = weighted(pick, ((0, 90), (1, 10)))
                return struct.pack("<IB3sQ", size, version, pick.randbytes(3), address(_BLOB))
            case _:
                return pick.randbytes(64)


def lives(
    path: Path, seed: int, numbers: Iterable[int]
) -> Iterator[tuple[int, set[str], DifferenceError | None]]:
    """Yield for each sequence: its number, its successful commands, and the difference, if any."""
    library = ctypes.CDLL(str(path))
    library.oracle_ioctl.restype = ctypes.c_long
    library.oracle_ioctl.argtypes = (ctypes.c_bool, ctypes.c_uint32, ctypes.c_uint64)
    library.oracle_reset.restype = None
    library.oracle_reset.argtypes = (ctypes.c_bool, ctypes.c_uint8, ctypes.c_uint8, ctypes.c_uint8)
    for name in ("firmware", "reached"):
        getattr(library, f"oracle_{name}").restype = ctypes.c_void_p
    for number in numbers:
        life = _Life(library, f"{seed}:{number}")
        found = None
        try:
            life.live()
        except DifferenceError as differs:
            found = differs
        yield number, life.reached, found
