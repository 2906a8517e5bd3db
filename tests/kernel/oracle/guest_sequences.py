# SPDX-License-Identifier: Apache-2.0
"""Compares Linux's driver for guests with the emulator's, from ioctl or configfs-tsm to message.

Both drivers get the same random answers from the host: a good response, BUSY, "buffer too
small", an error, an exception, or a malformed response. Asked to make pages private or shared,
the host may do so for all, some or none of them, and may alter the list of changes.
"""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from snpcerts.abi.ghcb import (
    SHARED_BUFFER,
    ExitCode,
    Field,
    GhcbPage,
    MsrCode,
    PageStateOperation,
)
from snpcerts.abi.guest_message import MessageHeader, SecretsPage
from snpcerts.abi.kvm import UserspaceMemoryRegion2
from snpcerts.abi.sev_guest import SNP_GET_DERIVED_KEY, SNP_GET_EXT_REPORT, SNP_GET_REPORT
from snpcerts.emulator.guest.configfs import BinaryAttribute, ConfigDirectory, TextAttribute
from snpcerts.emulator.guest.linux import LinuxGuest
from snpcerts.emulator.guest.memory_slots import MemorySlots, SlotMemory
from snpcerts.emulator.guest.program import GuestCpu, Program, Sleep, Vmgexit, WaitUntil
from snpcerts.emulator.guest.sev_guest_device import GuestHolder, SevGuestCall, SevGuestDevice
from snpcerts.emulator.guest.tsm_reports import TsmReports
from snpcerts.emulator.psp.message_seal import seal
from snpcerts.emulator.syscall.device import Caller
from snpcerts.emulator.syscall.file_tree import Operation

from .difference import DifferenceError
from .user import PAGE, USER, USER_PAGES, UserSide, weighted

_SHARED_PAGES: Final = 7
_GHCB, _REQUEST, _RESPONSE, _DATA = 0, PAGE, 2 * PAGE, 3 * PAGE
_OUTER, _REQ, _RESP, _CERTS = USER, USER + PAGE, USER + 2 * PAGE, USER + 4 * PAGE
_EBADMSG: Final = 74
_EXITS_MAX: Final = 40  # a busy host is asked 31 times
_TERMINATED: Final = -1000  # in place of a result
# Files of configfs-tsm, in the order of enum tsm_attr_index and enum tsm_bin_attr_index.
_TEXTS: Final = (
    "generation",
    "provider",
    "privlevel",
    "privlevel_floor",
    "service_provider",
    "service_guid",
    "service_manifest_version",
)
_BLOBS: Final = ("inblob", "outblob", "auxblob", "manifestblob")

_LIMITS: Final = (b"%d", b"0x%x", b"0%o")

_T = TypeVar("_T")

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
    """How the host answers one guest request."""

    info1: int
    info2: int
    rbx: int
    payload: bytes
    spoiled: str
    table: bytes


@dataclass(frozen=True, slots=True)
class _Change:
    """How the host answers one list of page state changes.

    ``done`` is the number of entries that it processes; None for all.
    """

    info1: int = 0
    info2: int = 0
    done: int | None = None
    end: int = 0  # how far it moves the end of the list
    reserved: int = 0


class _TerminatedError(Exception):
    """The guest asked to be terminated."""

    def __init__(self, msr: int) -> None:
        super().__init__(f"{msr:#x}")
        self.msr = msr


class _Host:
    """The host of one side. Both hosts give the same answers; each records what its guest sends."""

    def __init__(self, key: bytes, answers: list[_Answer], changes: list[_Change]) -> None:
        self._key = key
        self._answers = answers
        self._changes = changes
        self._requests = self._lists = 0
        self.seen: list[bytes] = []

    def answer(self, shared: memoryview | bytearray) -> None:
        """Serve a VMGEXIT; write the answer to the guest's shared pages."""
        self.seen.append(bytes(shared[: 3 * PAGE]))
        ghcb = GhcbPage(memoryview(shared)[:PAGE])
        is_list = ghcb.get(Field.SW_EXITCODE) == ExitCode.PSC
        ghcb.usage, ghcb.protocol_version = 1 << 31 | 1, 0xFFFF  # the guest sets them again
        if is_list:
            self._change(shared, ghcb)
            return
        self._requests += 1
        answer = self._answers[min(self._requests, len(self._answers)) - 1]
        ghcb.put(Field.SW_EXITINFO1, answer.info1)
        ghcb.put(Field.SW_EXITINFO2, answer.info2)
        ghcb.put(Field.RBX, answer.rbx)
        if answer.info1 & 0xFFFF_FFFF or answer.info2:
            return
        shared[_DATA : _DATA + len(answer.table)] = answer.table
        request = MessageHeader.unpack(bytes(shared[_REQUEST : _REQUEST + PAGE]))
        shared[_RESPONSE : _RESPONSE + PAGE] = self._response(request, answer)

    def _change(self, shared: memoryview | bytearray, ghcb: GhcbPage) -> None:
        self._lists += 1
        change = self._changes[min(self._lists, len(self._changes)) - 1]
        current, end = struct.unpack_from("<HH", shared, SHARED_BUFFER)
        done = end + 1 if change.done is None else min(end + 1, current + change.done)
        end = max(0, min(end + change.end, 0xFFFF))
        struct.pack_into("<HHI", shared, SHARED_BUFFER, done, end, change.reserved)
        ghcb.put(Field.SW_EXITINFO1, change.info1)
        ghcb.put(Field.SW_EXITINFO2, change.info2)

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
    """The kernel's side: the driver of a release."""

    def __init__(self, path: Path) -> None:
        self.library = library = ctypes.CDLL(str(path))
        library.oracle_ioctl.restype = ctypes.c_long
        library.oracle_ioctl.argtypes = (ctypes.c_uint32, ctypes.c_uint64)
        library.oracle_reset.argtypes = (ctypes.c_uint64, ctypes.c_char_p, ctypes.c_uint32)
        library.oracle_reset.restype = None
        library.oracle_tsm_make.restype = library.oracle_tsm_show.restype = ctypes.c_long
        library.oracle_tsm_show.argtypes = (ctypes.c_int, ctypes.c_char_p)
        library.oracle_tsm_visible.argtypes = (ctypes.c_int, ctypes.c_bool)
        for name in ("privlevel", "inblob"):
            function = getattr(library, f"oracle_tsm_{name}")
            function.restype = ctypes.c_long
            function.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
        library.oracle_tsm_read.restype = ctypes.c_long
        library.oracle_tsm_read.argtypes = (ctypes.c_bool, ctypes.c_char_p, ctypes.c_size_t)
        library.oracle_boot.restype = library.oracle_change.restype = ctypes.c_long
        library.oracle_change.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int)
        library.oracle_reason.restype = ctypes.c_uint64
        for name in ("shared", "secrets"):
            getattr(library, f"oracle_{name}").restype = ctypes.c_void_p
        library.oracle_reset(0, bytes(32), 0)
        at = library.oracle_shared()
        area = (ctypes.c_ubyte * (_SHARED_PAGES * PAGE)).from_address(at)
        self.shared = memoryview(area).cast("B")
        self.host: _Host | None = None
        self._exit = ctypes.CFUNCTYPE(None)(self._vmgexit)
        library.oracle_callbacks(self._exit, _sealed, _opened)

    def _vmgexit(self) -> None:
        assert self.host is not None
        self.host.answer(self.shared)

    def attributes(self) -> set[str]:
        """The files of the configfs-tsm directory."""
        visible = self.library.oracle_tsm_visible
        found = {name for number, name in enumerate(_TEXTS) if visible(number, False)}
        return found | {name for number, name in enumerate(_BLOBS) if visible(number, True)}

    def show(self, name: str) -> tuple[int, bytes]:
        """Read a text file of configfs-tsm: its size or a negative errno, and its content."""
        page = ctypes.create_string_buffer(PAGE)
        result = self.library.oracle_tsm_show(_TEXTS.index(name), page)
        return result, page.raw[: max(result, 0)]

    def store(self, name: str, data: bytes) -> tuple[int, bytes]:
        """Write to a file of configfs-tsm; return 0 or a negative errno, without content."""
        result = getattr(self.library, f"oracle_tsm_{name}")(data, len(data))
        return min(result, 0), b""

    def blob(self, name: str) -> tuple[int, bytes]:
        """Read a binary file as configfs does: first its size, then its content."""
        read, certificates = self.library.oracle_tsm_read, name == "auxblob"
        size = read(certificates, None, 0)
        if size <= 0:
            return size, b""
        content = ctypes.create_string_buffer(size)
        size = read(certificates, content, size)
        return size, content.raw[: max(size, 0)]

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
    """The emulator's side: the emulated Linux guest."""

    def __init__(self, key: bytes, counter: int, host: _Host) -> None:
        secrets = SecretsPage(version=3, vmpck0=key).pack()
        self.pages = _GuestMemoryPages()
        slots = MemorySlots(protected=True)
        slots.set(UserspaceMemoryRegion2(0, 0, 0, _SHARED_PAGES * PAGE, USER))
        self.now = 0.0
        self.guest = LinuxGuest(
            cast("Any", SimpleNamespace(name="guest", slots=slots, secrets_page=secrets))
        )
        self.guest.vmpcks[0].counter = counter
        self._cpu = cpu = GuestCpu(0, lambda: self.now)
        cpu.memory = SlotMemory(slots, self.pages)
        self.host: _Host | None = host
        self.attributes: Mapping[str, TextAttribute | BinaryAttribute] = {}
        self._program: Program = self.guest.program(cpu)
        self._event = next(self._program)

    def boot(self) -> int:
        """Run the guest until its driver starts; raises :class:`_TerminatedError` if it ends."""
        while isinstance(self._event, Vmgexit):
            self._step()
        return 0

    def change(self, page: int, pages: int, *, private: bool) -> int:
        """Make pages of the guest private or shared."""
        shared = self.guest.shared_pages(0)
        assert shared is not None
        operation = PageStateOperation.PRIVATE if private else PageStateOperation.SHARED
        work = self.guest.set_page_state(self._cpu, shared, page * PAGE, pages, operation)
        self._program, waiting = work, (self._program, self._event)
        try:
            self._event = next(work)
            while True:
                self._step()
        except StopIteration:
            return 0
        finally:
            self._program, self._event = waiting

    def ioctl(self, caller: Caller, request: int, argument: int) -> int:
        """Make the call, and run the guest until it returns."""
        holder = SimpleNamespace(guest=self.guest, alive=True)
        call: SevGuestCall = SevGuestDevice(cast("GuestHolder", holder)).ioctl(
            caller, request, argument
        )
        while (result := call.poll()) is None:
            self._step()
        return result

    def make_reports(self) -> int:
        """Make a new directory in configfs-tsm."""
        reports = TsmReports(cast("GuestHolder", SimpleNamespace(guest=self.guest, alive=True)))
        found = reports.root.children["tsm"]
        assert isinstance(found, ConfigDirectory)
        directory = found.children["report"]
        assert isinstance(directory, ConfigDirectory)
        assert directory.make_item is not None
        self.attributes = self._done(directory.make_item())
        return 0

    def show(self, name: str) -> tuple[int, bytes]:
        """Like :meth:`_Kernel.show`; raises OSError instead of returning an errno."""
        text = self.attributes[name]
        assert isinstance(text, TextAttribute)
        assert text.show is not None
        shown = self._done(text.show())
        return len(shown), shown

    def store(self, name: str, data: bytes) -> tuple[int, bytes]:
        """Like :meth:`_Kernel.store`; raises OSError instead of returning an errno."""
        attribute = self.attributes[name]
        store = attribute.store if isinstance(attribute, TextAttribute) else attribute.write
        assert store is not None
        self._done(store(data))
        return 0, b""

    def blob(self, name: str) -> tuple[int, bytes]:
        """Like :meth:`_Kernel.blob`; raises OSError instead of returning an errno."""
        attribute = self.attributes[name]
        assert isinstance(attribute, BinaryAttribute)
        assert attribute.read is not None
        if not self._done(attribute.read(False)):
            return 0, b""
        found = self._done(attribute.read(True))
        return len(found), found

    def _done(self, work: Operation[_T]) -> _T:
        """Run the guest until an operation is done; return its result."""
        while True:
            try:
                next(work)
            except StopIteration as end:
                return cast("_T", end.value)
            self._step()

    def _step(self) -> None:
        answer = 0
        match self._event:
            case WaitUntil(ready):
                assert ready(), "the guest must not wait for an event that cannot happen"
            case Sleep(seconds):
                self.now += seconds
            case Vmgexit(msr) if msr & 0xFFF == MsrCode.TERMINATE:
                raise _TerminatedError(msr)
            case Vmgexit(msr) if msr & 0xFFF == MsrCode.PSC_REQ:
                answer = int(MsrCode.PSC_RSP)
            case Vmgexit(msr) if msr & 0xFFF:
                answer = msr | 1  # the GHCB is registered
            case Vmgexit():
                assert self.host is not None
                self.host.answer(self.pages.bytes)
        self._event = self._program.send(answer)


class _Life:
    """One guest on both sides: its boot and the calls that follow."""

    def __init__(self, kernel: _Kernel, seed: str) -> None:
        self._pick = random.Random(seed)
        self._kernel = kernel
        self._story: list[str] = []
        self._ended = False
        self.reached: set[str] = set()

    def live(self) -> None:
        pick = self._pick
        key = pick.randbytes(32)
        counter = weighted(pick, ((0, 90), (0xFFFF_FFFC, 5), (0xFFFF_FFFE, 5)))
        changes = self._changes(trouble=0.02)
        emulator = _Emulator(key, counter, _Host(key, [], changes))
        self._kernel.library.oracle_reset(0, key, counter)
        self._kernel.host = _Host(key, [], changes)
        user = UserSide(self._kernel.library)
        self._story += [f"counter {counter:#x}", "boot", *map(str, changes)]
        kernel = int(self._kernel.library.oracle_boot())
        self._compare("boot", kernel, emulator, emulator.boot)
        while not self._ended and pick.random() < 0.75:
            what = pick.random()
            if what < 0.15:
                self._change(emulator, key)
            elif what < 0.4:
                self._reports(emulator, key)
            else:
                self._call(user, emulator, key)

    def _compare(
        self, what: str, kernel: int, emulator: _Emulator, call: Callable[[], int]
    ) -> None:
        """Make the call on the emulator, too, and compare. ``kernel`` is the kernel's result."""
        assert self._kernel.host is not None
        assert emulator.host is not None
        try:
            ours = call()
        except _TerminatedError as end:
            ours = _TERMINATED
            if kernel == _TERMINATED and end.msr != self._kernel.library.oracle_reason():
                ours = -end.msr
        found = {} if kernel == ours else {"result": f"{kernel} {ours}"}
        self._ended = kernel == _TERMINATED
        read = what.endswith("blob") and kernel > 0
        self.reached.add(f"{what} read" if read else f"{what} {kernel}")
        if self._kernel.host.seen != emulator.host.seen:
            found["host"] = _first_difference(self._kernel.host.seen, emulator.host.seen)
        shared = bytes(self._kernel.shared)
        if shared != emulator.pages.bytes:
            found["memory"] = _first_difference([shared], [bytes(emulator.pages.bytes)])
        if found:
            raise DifferenceError(f"{what}: {' '.join(sorted(found))}", found, self._story)

    def _change(self, emulator: _Emulator, key: bytes) -> None:
        """Make pages private or shared, some in units of 2 MiB. There is no memory behind them."""
        pick = self._pick
        page = weighted(pick, ((512, 50), (pick.randrange(7, 1100), 50)))
        pages = weighted(pick, ((1, 20), (512, 20), (1024, 10), (pick.randrange(1, 600), 50)))
        private = pick.random() < 0.5
        changes = self._changes(trouble=0.2)
        self._story += [f"{pages} pages from {page}, private {private}", *map(str, changes)]
        self._kernel.host, emulator.host = _Host(key, [], changes), _Host(key, [], changes)
        kernel = int(self._kernel.library.oracle_change(page, pages, private))
        self._compare(
            "change", kernel, emulator, lambda: emulator.change(page, pages, private=private)
        )

    def _reports(self, emulator: _Emulator, key: bytes) -> None:
        """Make a new directory in configfs-tsm, and read and write some of its files."""
        pick = self._pick
        self._compare(
            "tsm make", self._kernel.library.oracle_tsm_make(), emulator, emulator.make_reports
        )
        visible = self._kernel.attributes()
        if visible != emulator.attributes.keys():
            found = {"files": f"{sorted(visible)} {sorted(emulator.attributes)}"}
            raise DifferenceError("tsm: files", found, self._story)
        while not self._ended and pick.random() < 0.85:
            self._file(emulator, key)

    def _file(self, emulator: _Emulator, key: bytes) -> None:
        pick = self._pick
        name = weighted(
            pick,
            (
                ("inblob", 27),
                ("outblob", 25),
                ("auxblob", 23),
                ("privlevel", 13),
                ("generation", 8),
                ("provider", 2),
                ("privlevel_floor", 2),
            ),
        )
        answers = [self._with_header(each) for each in self._answers(SNP_GET_EXT_REPORT)]
        changes = self._changes(trouble=0.03)
        self._kernel.host = _Host(key, answers, changes)
        emulator.host = _Host(key, answers, changes)
        data = b""
        if name == "inblob":
            data = pick.randbytes(weighted(pick, ((64, 85), (0, 5), (pick.randrange(1, 64), 10))))
        elif name == "privlevel":
            data = self._level()
        self._story += [f"{name} {data.hex()}", *map(_as_line, answers), *map(str, changes)]

        def of(side: _Kernel | _Emulator) -> tuple[int, bytes]:
            if name in ("outblob", "auxblob"):
                return side.blob(name)
            return side.store(name, data) if data or name == "inblob" else side.show(name)

        kernel, content = of(self._kernel)
        ours = b""

        def call() -> int:
            nonlocal ours
            try:
                result, ours = of(emulator)
            except OSError as failed:
                return -(failed.errno or 0)
            return result

        self._compare(f"tsm {name}", kernel, emulator, call)
        if content != ours:
            found = {"content": _first_difference([content], [ours])}
            raise DifferenceError(f"tsm {name}: content", found, self._story)

    def _level(self) -> bytes:
        pick = self._pick
        if pick.random() < 0.2:
            number = pick.choice((1 << 32, 1 << 64)) - pick.choice((0, 1))
            return pick.choice(_LIMITS) % number + pick.choice((b"", b"x", b"`"))
        usual = pick.choice((b"0", b"1", b"3", b"4"))
        prefix = weighted(
            pick,
            (
                (b"", 60),
                (b"0x", 10),
                (b"0", 10),
                (b"+", 5),
                (b"-", 5),
                (b" ", 4),
                (b"0X", 4),
                (b"1x", 2),
            ),
        )
        digits = weighted(
            pick,
            (
                (usual, 70),
                (b"%d" % pick.getrandbits(66), 10),
                (b"%d" % (1 << 32), 5),
                (b"%x" % pick.getrandbits(70), 5),
                (b"8", 5),
                (pick.randbytes(3), 3),
                (pick.choice((b"@", b"`", b"g", b"1@")), 2),  # beside letters and digits
            ),
        )
        tail = weighted(pick, ((b"", 50), (b"\n", 30), (b"\n\n", 5), (b" ", 5), (b"\0x", 10)))
        return prefix + digits + tail

    def _with_header(self, answer: _Answer) -> _Answer:
        """Return the answer with a report's header in its payload and, in most cases, a table."""
        pick = self._pick
        status = weighted(pick, ((0, 80), (0x16, 6), (0x27, 6), (pick.getrandbits(32), 8)))
        size = weighted(
            pick,
            (
                (1184, 75),
                (0, 5),
                (PAGE - 32, 5),
                (PAGE - 31, 5),
                (pick.randrange(1200), 5),
                (pick.getrandbits(32), 5),
            ),
        )
        payload = (struct.pack("<II24x", status, size) + answer.payload)[: len(answer.payload)]
        if pick.random() < 0.3:
            return replace(answer, payload=payload)
        entries = []
        for _ in range(pick.randrange(4)):
            offset = weighted(
                pick, ((pick.randrange(16000), 85), (0, 5), (pick.getrandbits(32), 10))
            )
            length = weighted(
                pick, ((pick.randrange(2000), 85), (0, 10), (pick.getrandbits(32), 5))
            )
            guid = weighted(pick, ((pick.randbytes(16), 90), (bytes(16), 10)))
            entries.append(guid + struct.pack("<II", offset, length))
        return replace(answer, payload=payload, table=b"".join(entries) + bytes(24))

    def _changes(self, *, trouble: float) -> list[_Change]:
        pick = self._pick
        found = []
        while pick.random() < trouble:
            found.append(
                _Change(
                    info1=weighted(pick, ((0, 80), (1, 5), (2, 5), (pick.getrandbits(64), 10))),
                    info2=weighted(
                        pick,
                        (
                            (0, 70),
                            (1 << 31 | 3 << 8 | pick.choice((6, 13, 14)), 10),
                            (pick.getrandbits(64), 10),
                            (1 << pick.randrange(64), 10),
                        ),
                    ),
                    done=weighted(pick, ((None, 40), (0, 20), (1, 20), (pick.randrange(64), 20))),
                    end=weighted(pick, ((0, 70), (1, 10), (-1, 10), (pick.randrange(-70, 70), 10))),
                    reserved=weighted(pick, ((0, 80), (1, 10), (1 << pick.randrange(32), 10))),
                )
            )
        return [*found, _Change()]

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
        self._story += [f"ioctl {request:#x} {bytes(outer).hex()}", *map(_as_line, answers)]
        changes = self._changes(trouble=0.05)
        self._story += map(str, changes)
        self._kernel.host = _Host(key, answers, changes)
        emulator.host = _Host(key, answers, changes)
        kernel = int(self._kernel.library.oracle_ioctl(request, argument))
        caller = Caller(user.memory, lambda _: None)
        terminated: list[int] = []

        def call() -> int:
            try:
                return emulator.ioctl(caller, request, argument)
            except _TerminatedError as end:
                terminated.append(end.msr)
                return _TERMINATED

        ours = user.result(call)
        # A terminated guest's program is gone, so what was last copied to its memory is irrelevant.
        found = {} if kernel == _TERMINATED else user.differences()
        if kernel != ours:
            found["result"] = f"{kernel} {ours}"
        if kernel == _TERMINATED:
            self._ended = True
            if terminated != [self._kernel.library.oracle_reason()]:
                found["reason"] = f"{self._kernel.library.oracle_reason():#x} {terminated}"
        shared = bytes(self._kernel.shared)
        if shared != emulator.pages.bytes:
            found["memory"] = _first_difference([shared], [bytes(emulator.pages.bytes)])
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
            info1 = weighted(
                pick, ((0, 88), (1 << 32, 2), (1, 4), (2, 3), (pick.getrandbits(64), 3))
            )
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
            if pick.random() < 0.04:  # as hosts refuse: #UD and #GP are the exceptions they give
                info1, info2 = 1, 1 << 31 | 3 << 8 | pick.choice((6, 13, 14))
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
        # End with an answer to which the driver returns: it repeats a request after BUSY.
        return [*found, _Answer(0, 0, 0, pick.randbytes(64), "", b"")]


def _as_line(answer: _Answer) -> str:
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
    path: Path, seed: int, numbers: Iterable[int]
) -> Iterator[tuple[int, set[str], DifferenceError | None]]:
    """Yield for each guest: its number, what its calls returned, and the difference, if any."""
    kernel = _Kernel(path)
    for number in numbers:
        life = _Life(kernel, f"{seed}:{number}")
        found = None
        try:
            life.live()
        except DifferenceError as differs:
            found = differs
        yield number, life.reached, found
