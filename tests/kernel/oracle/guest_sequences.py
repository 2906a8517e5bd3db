# SPDX-License-Identifier: Apache-2.0
"""A Linux guest's own driver beside the emulator's: from ioctl to message and back.

The host of both is the same and answers at random: well, busy, too small a buffer,
errors, exceptions, and responses with something wrong in them.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from snpcerts.abi.ghcb import Field, GhcbPage
from snpcerts.abi.guest_message import MessageHeader, SecretsPage
from snpcerts.abi.kvm import UserspaceMemoryRegion2
from snpcerts.abi.sev_guest import SNP_GET_DERIVED_KEY, SNP_GET_EXT_REPORT, SNP_GET_REPORT
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.guest.memory_slots import MemorySlots, SlotMemory
from snpcerts.emulator.guest.program import GuestCpu, Program, Sleep, Vmgexit, WaitUntil
from snpcerts.emulator.guest.sev_guest_device import GuestHolder, SevGuestCall, SevGuestDevice
from snpcerts.emulator.psp.message_seal import seal
from snpcerts.emulator.syscall.device import Caller

from .difference import DifferenceError
from .user import PAGE, USER, USER_PAGES, UserSide, weighted

_SHARED_PAGES: Final = 7
_GHCB, _REQUEST, _RESPONSE, _DATA = 0, PAGE, 2 * PAGE, 3 * PAGE
_OUTER, _REQ, _RESP, _CERTS = USER, USER + PAGE, USER + 2 * PAGE, USER + 4 * PAGE
_EBADMSG: Final = 74
_EXITS_MAX: Final = 40  # a busy host is asked 31 times

_SEAL = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(3 * (ctypes.c_void_p,)),
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.c_uint32,
    *(2 * (ctypes.c_void_p,)),
)


@_SEAL
def _sealed(key, iv, aad, aad_size, data, size, out, tag):  # type: ignore[no-untyped-def] # C's
    found = AESGCM(ctypes.string_at(key, 32)).encrypt(
        ctypes.string_at(iv, 12), ctypes.string_at(data, size), ctypes.string_at(aad, aad_size)
    )
    ctypes.memmove(out, found[:-16], size)
    ctypes.memmove(tag, found[-16:], 16)
    return 0


@_SEAL
def _opened(key, iv, aad, aad_size, data, size, out, tag):  # type: ignore[no-untyped-def] # C's
    sealed = ctypes.string_at(data, size) + ctypes.string_at(tag, 16)
    try:
        found = AESGCM(ctypes.string_at(key, 32)).decrypt(
            ctypes.string_at(iv, 12), sealed, ctypes.string_at(aad, aad_size)
        )
    except InvalidTag:
        return -_EBADMSG
    ctypes.memmove(out, found, size)
    return 0


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the host does with one exit."""

    info1: int
    info2: int
    rbx: int
    payload: bytes
    spoiled: str
    table: bytes


class _Host:
    """One side's host: the same answers, and a record of what it was given."""

    def __init__(self, key: bytes, answers: list[_Answer]) -> None:
        self._key = key
        self._answers = answers
        self.seen: list[bytes] = []

    def answer(self, shared: memoryview | bytearray) -> None:
        """Serve a VMGEXIT, in the guest's shared pages."""
        self.seen.append(bytes(shared[: 3 * PAGE]))
        answer = self._answers[min(len(self.seen), len(self._answers)) - 1]
        ghcb = GhcbPage(memoryview(shared)[:PAGE])
        ghcb.put(Field.SW_EXITINFO1, answer.info1)
        ghcb.put(Field.SW_EXITINFO2, answer.info2)
        ghcb.put(Field.RBX, answer.rbx)
        if answer.info1 & 0xFFFF_FFFF or answer.info2:
            return
        shared[_DATA : _DATA + len(answer.table)] = answer.table
        request = MessageHeader.unpack(bytes(shared[_REQUEST : _REQUEST + PAGE]))
        shared[_RESPONSE : _RESPONSE + PAGE] = self._response(request, answer)

    def _response(self, request: MessageHeader, answer: _Answer) -> bytes:
        if answer.spoiled == "nothing":
            return bytes(PAGE)
        fields: dict[str, Any] = {
            "msg_seqno": request.msg_seqno + 1,
            "msg_type": request.msg_type + 1,
            "msg_version": request.msg_version,
        }
        if answer.spoiled in fields:
            fields[answer.spoiled] += 1 if answer.spoiled == "msg_seqno" else 2
            fields[answer.spoiled] &= 0xFF if answer.spoiled != "msg_seqno" else (1 << 64) - 1
        header = MessageHeader(
            algo=1, hdr_version=1, hdr_sz=0x60, msg_vmpck=request.msg_vmpck, **fields
        )
        page = bytearray(seal(self._key, header, answer.payload))
        if answer.spoiled == "tag":
            page[3] ^= 1
        elif answer.spoiled == "payload":
            page[0x60] ^= 1
        return bytes(page)


class _Kernel:
    """The driver of the release."""

    def __init__(self, path: Path) -> None:
        self.library = library = ctypes.CDLL(str(path))
        library.oracle_ioctl.restype = ctypes.c_long
        library.oracle_ioctl.argtypes = (ctypes.c_uint32, ctypes.c_uint64)
        library.oracle_reset.argtypes = (ctypes.c_uint64, ctypes.c_char_p, ctypes.c_uint32)
        for name in ("shared", "secrets"):
            getattr(library, f"oracle_{name}").restype = ctypes.c_void_p
        at = library.oracle_shared()
        area = (ctypes.c_ubyte * (_SHARED_PAGES * PAGE)).from_address(at)
        self.shared = memoryview(area).cast("B")
        self.host: _Host | None = None
        self._exit = ctypes.CFUNCTYPE(None)(self._vmgexit)
        library.oracle_callbacks(self._exit, _sealed, _opened)

    def _vmgexit(self) -> None:
        assert self.host is not None
        self.host.answer(self.shared)

    def key(self) -> bytes:
        """VMPCK 0 in the secrets page."""
        offset = SecretsPage.layout()["vmpck0"][0]
        return ctypes.string_at(self.library.oracle_secrets() + offset, 32)


class _GuestMemoryPages:
    """The emulated guest's memory: its shared pages and nothing else."""

    def __init__(self) -> None:
        self.bytes = bytearray(_SHARED_PAGES * PAGE)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.bytes[address - USER : address - USER + size])

    def write(self, address: int, data: bytes) -> None:
        self.bytes[address - USER : address - USER + len(data)] = data


class _Emulator:
    """The emulator's guest."""

    def __init__(self, key: bytes, counter: int) -> None:
        secrets = SecretsPage(version=3, vmpck0=key).pack()
        self.pages = _GuestMemoryPages()
        slots = MemorySlots(protected=True)
        slots.set(UserspaceMemoryRegion2(0, 0, 0, _SHARED_PAGES * PAGE, USER))
        self.now = 0.0
        self.guest = LinuxGuest(
            cast("Any", SimpleNamespace(name="guest", slots=slots, secrets_page=secrets))
        )
        self.guest.vmpcks[0].counter = counter
        cpu = GuestCpu(0, lambda: self.now)
        cpu.memory = SlotMemory(slots, self.pages)
        self._program: Program = self.guest.program(cpu)
        self._event = next(self._program)
        while isinstance(self._event, Vmgexit):  # boot registers the GHCB
            self._event = self._program.send(self._event.msr | 1)
        self.host: _Host | None = None

    def ioctl(self, caller: Caller, request: int, argument: int) -> int:
        """The whole call."""
        holder = SimpleNamespace(guest=self.guest, alive=True)
        call: SevGuestCall = SevGuestDevice(cast("GuestHolder", holder)).ioctl(
            caller, request, argument
        )
        while (result := call.poll()) is None:
            self._step()
        return result

    def _step(self) -> None:
        match self._event:
            case WaitUntil(ready):
                assert ready(), "the guest waits for what does not come"
            case Sleep(seconds):
                self.now += seconds
            case Vmgexit():
                assert self.host is not None
                self.host.answer(self.pages.bytes)
        self._event = self._program.send(0)


class _Life:
    """A guest's calls from boot on."""

    def __init__(self, kernel: _Kernel, seed: str) -> None:
        self._pick = random.Random(seed)
        self._kernel = kernel
        self._story: list[str] = []
        self.reached: set[str] = set()

    def live(self) -> None:
        pick = self._pick
        key = pick.randbytes(32)
        counter = weighted(pick, ((0, 90), (0xFFFF_FFFC, 5), (0xFFFF_FFFE, 5)))
        emulator = _Emulator(key, counter)
        self._kernel.library.oracle_reset(0, key, counter)
        # Boot writes to the page that registers itself.
        self._kernel.shared[:] = bytes(emulator.pages.bytes)
        user = UserSide(self._kernel.library)
        self._story.append(f"counter {counter:#x}")
        for _ in range(pick.randint(1, 4)):
            self._call(user, emulator, key)

    def _call(self, user: UserSide, emulator: _Emulator, key: bytes) -> None:
        pick = self._pick
        request = weighted(
            pick,
            (
                (SNP_GET_EXT_REPORT, 60),
                (SNP_GET_REPORT, 20),
                (SNP_GET_DERIVED_KEY, 17),
                (pick.getrandbits(32), 3),
            ),
        )
        answers = self._answers(request)
        for page in range(USER_PAGES):
            user.map(page, mapped=pick.random() > 0.01)
        user.write(USER, pick.randbytes(64) * (USER_PAGES * PAGE // 64))
        user.write(_REQ, self._structure(request))
        outer = bytearray(32)
        outer[0] = weighted(pick, ((1, 90), (0, 4), (pick.randrange(256), 6)))
        for at, usual in ((8, _REQ), (16, _RESP)):
            address = weighted(pick, ((usual, 96), (0, 2), (1 << 47, 2)))
            outer[at : at + 8] = address.to_bytes(8, "little")
        outer[1:8], outer[24:32] = pick.randbytes(7), pick.randbytes(8)
        user.write(_OUTER, bytes(outer))
        argument = weighted(pick, ((_OUTER, 98), (8, 2)))
        self._story += [f"ioctl {request:#x} {bytes(outer).hex()}", *map(_told, answers)]
        self._kernel.host, emulator.host = _Host(key, answers), _Host(key, answers)
        kernel = int(self._kernel.library.oracle_ioctl(request, argument))
        caller = Caller(user.memory, lambda _: None)
        ours = user.result(lambda: emulator.ioctl(caller, request, argument))
        found = user.differences()
        if kernel != ours:
            found["result"] = f"{kernel} {ours}"
        if self._kernel.host.seen != emulator.host.seen:
            found["host"] = _first_difference(self._kernel.host.seen, emulator.host.seen)
        if self._kernel.key() != emulator.guest.vmpcks[0].key:
            found["key"] = f"{self._kernel.key().hex()} {emulator.guest.vmpcks[0].key.hex()}"
        self.reached.add(f"result {kernel}")
        if found:
            names = {SNP_GET_REPORT: "report", SNP_GET_EXT_REPORT: "extended report"}
            what = names.get(request, "key" if request == SNP_GET_DERIVED_KEY else "unknown")
            raise DifferenceError(f"{what}: {' '.join(sorted(found))}", found, self._story)

    def _structure(self, request: int) -> bytes:
        pick = self._pick
        data = bytearray(pick.randbytes(128))
        if request == SNP_GET_EXT_REPORT:
            limit = (1 << 47) - PAGE
            address = weighted(
                pick,
                (
                    (_CERTS, 82),
                    (0, 5),
                    (limit - 4 * PAGE, 3),
                    (limit - PAGE, 3),
                    (limit - 3 * PAGE, 3),
                    (1 << 47, 2),
                    (pick.getrandbits(64), 2),
                    (USER + (USER_PAGES - 1) * PAGE, 3),
                ),
            )
            length = weighted(
                pick,
                (
                    (4 * PAGE, 40),
                    (PAGE, 30),
                    (0, 10),
                    (5 * PAGE, 5),
                    (100, 5),
                    (pick.getrandbits(32), 10),
                ),
            )
            data[96:104] = address.to_bytes(8, "little")
            data[104:108] = length.to_bytes(4, "little")
        return bytes(data)

    def _answers(self, request: int) -> list[_Answer]:
        pick = self._pick
        found = []
        for _ in range(weighted(pick, ((1, 60), (2, 25), (3, 13), (_EXITS_MAX, 2)))):
            info1 = weighted(pick, ((0, 90), (1, 4), (2, 3), (pick.getrandbits(64), 3)))
            info2 = weighted(
                pick,
                (
                    (0, 45),
                    (1 << 32, 18),
                    (2 << 32, 17),
                    (0xFFFF_FFFF << 32, 4),
                    (pick.getrandbits(8), 6),
                    (1 << 32 | pick.getrandbits(8), 4),
                    (1 << 31 | 3 << 8 | pick.choice((6, 13, 14)), 3),
                    (pick.getrandbits(64), 3),
                ),
            )
            spoiled = weighted(
                pick,
                (
                    ("", 80),
                    ("msg_seqno", 3),
                    ("msg_type", 3),
                    ("msg_version", 3),
                    ("tag", 4),
                    ("payload", 3),
                    ("nothing", 4),
                ),
            )
            usual = 64 if request == SNP_GET_DERIVED_KEY else 1216
            size = weighted(pick, ((usual, 85), (0, 5), (4000, 5), (pick.randrange(1, 4000), 5)))
            rbx = weighted(pick, ((2, 60), (0, 10), (pick.getrandbits(64), 30)))
            table = pick.randbytes(pick.choice((0, 24, 4 * PAGE)))
            found.append(_Answer(info1, info2, rbx, pick.randbytes(size), spoiled, table))
        if len(found) == _EXITS_MAX:
            busy = _Answer(0, 2 << 32, 0, b"", "", b"")
            return [*[busy] * (_EXITS_MAX - 1), found[-1]]
        # A host that is busy or short for ever would keep the driver for ever.
        return [*found, _Answer(0, 0, 0, pick.randbytes(64), "", b"")]


def _told(answer: _Answer) -> str:
    spoiled = f", {answer.spoiled} spoiled" if answer.spoiled else ""
    return f"  host: {answer.info1:#x}/{answer.info2:#x} rbx {answer.rbx:#x}{spoiled}"


def _first_difference(theirs: list[bytes], ours: list[bytes]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} exits, {len(ours)} exits"
    for number, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        for at in range(0, len(a), 8):
            if a[at : at + 8] != b[at : at + 8]:
                return f"exit {number} at {at:#x}: {a[at : at + 8].hex()} {b[at : at + 8].hex()}"
    return "none"


def lives(
    path: Path, seed: int, numbers: range
) -> Iterator[tuple[int, set[str], DifferenceError | None]]:
    """Each guest by its number: what its calls returned, and what ended it."""
    kernel = _Kernel(path)
    for number in numbers:
        life = _Life(kernel, f"{seed}:{number}")
        found = None
        try:
            life.live()
        except DifferenceError as differs:
            found = differs
        yield number, life.reached, found
