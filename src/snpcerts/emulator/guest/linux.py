# SPDX-License-Identifier: Apache-2.0
"""A Linux guest: its shared pages, and how its driver sends guest messages.

Source: Linux ``arch/x86/coco/sev/core.c`` and ``drivers/virt/coco/sev-guest/sev-guest.c``. A
guest's memory is private until the guest asks to share pages; for each request the driver makes its
certificate buffer shared, and private again afterwards. The driver's rules decide what a host's
answer does to a guest.

The driver retries after BUSY every two seconds for a minute. A buffer that is too small costs one
more firmware call. Any other error destroys the VMPCK; then the guest cannot attest until it boots
again.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field

from snpcerts.abi.ghcb import (
    PAGE_SIZE,
    ExitCode,
    Field,
    GhcbPage,
    MsrCode,
    PageStateOperation,
    VmmError,
    guest_err,
)
from snpcerts.abi.guest_message import (
    MAX_PAYLOAD,
    MESSAGE_SIZE,
    VMPCK_SIZE,
    MessageHeader,
    SecretsPage,
)
from snpcerts.abi.sev_guest import CERTS_MAX_SIZE, EXITINFO2_NOT_SENT
from snpcerts.emulator.guest import page_state_calls
from snpcerts.emulator.guest.program import (
    Event,
    GuestCpu,
    GuestTerminatedError,
    LaunchedVm,
    Program,
    Sleep,
    Vmgexit,
    WaitUntil,
)
from snpcerts.emulator.guest.script import BUSY_DELAY
from snpcerts.emulator.psp.message_seal import SealError, header_for, open_sealed, seal

log = logging.getLogger(__name__)

DATA_PAGES = CERTS_MAX_SIZE // PAGE_SIZE
BUSY_LIMIT = 60.0  # seconds, SNP_REQ_MAX_RETRY_DURATION
SEQNO_LIMIT = 0xFFFF_FFFF
LARGE_MEMORY = 16 << 20  # bytes; with a slot of this size or larger, the guest has a bounce buffer
_VCPU_PAGES = 8 << 20  # bytes at the end of the slot that are left for the vCPUs' shared pages

_INVALID_LEN = guest_err(VmmError.INVALID_LEN, 0)
_BUSY = guest_err(VmmError.BUSY, 0)
# GHCB_TERM_REGISTER and GHCB_TERM_PSC, both in Linux's reason set 1.
_TERMINATE_REGISTRATION = 0 << 16 | 1 << 12 | MsrCode.TERMINATE
_TERMINATE_PAGE_STATE = 1 << 16 | 1 << 12 | MsrCode.TERMINATE


@dataclass(frozen=True, slots=True)
class SharedPages:
    """The GPAs of the pages that one vCPU shares with its host."""

    ghcb: int
    request: int
    response: int
    data: int
    data_pages: int


@dataclass(slots=True)
class Vmpck:
    """A VMPCK as the guest's kernel holds it.

    ``counter`` is the number of the last message exchanged. ``key`` is all zero once the driver has
    destroyed it. ``busy`` says whether the driver's mutex is held.
    """

    number: int
    key: bytes
    counter: int = 0
    busy: bool = False

    @property
    def disabled(self) -> bool:
        """Whether the key is missing or has been destroyed."""
        return not any(self.key)


@dataclass(frozen=True, slots=True)
class DriverRequest:
    """One guest message to send. ``data_pages`` is None for a plain request, and 0 for an extended
    request without a buffer.
    """

    msg_type: int
    msg_version: int
    payload: bytes
    response_size: int
    data_pages: int | None = None


@dataclass(frozen=True, slots=True)
class DriverResponse:
    """What the driver returns for a request.

    ``result`` is 0, a negative errno, or positive: the ``es_result`` of a VMGEXIT whose
    SW_EXITINFO1 was not 0. ``exitinfo2`` is None if the driver did not set it. ``pages`` is the
    last value of RBX, ``data`` the data pages, ``exits`` the number of VMGEXITs.
    """

    result: int
    exitinfo2: int | None = None
    payload: bytes = b""
    data: bytes = b""
    pages: int = 0
    exits: int = 0


@dataclass(slots=True)
class DriverCall:
    """A request that a program in the guest makes through ``/dev/sev-guest``."""

    request: DriverRequest
    response: DriverResponse | None = None


@dataclass(slots=True)
class _Sending:
    """The state of a guest message that is being sent, with its retries."""

    request: DriverRequest
    code: ExitCode
    pages: int
    exitinfo2: int = 0
    exits: int = 0
    override: int = 0


Driver = Generator[Event, int, DriverResponse]


@dataclass(slots=True)
class LinuxGuest:
    """The Linux kernel in one VM.

    ``data_pages`` is the maximum size of a certificate buffer in pages (Linux: 4); ``busy_delay``
    and ``busy_limit`` are seconds.

    This guest serves the requests of its programs (:meth:`submit`) on its first vCPU, with VMPCK 0.
    """

    vm: LaunchedVm
    data_pages: int = DATA_PAGES
    busy_delay: float = BUSY_DELAY
    busy_limit: float = BUSY_LIMIT
    vmpcks: tuple[Vmpck, ...] = ()
    gone: bool = False
    _calls: deque[DriverCall] = field(default_factory=deque)

    def __post_init__(self) -> None:
        page = self.vm.secrets_page
        if page is None:
            log.warning(
                "%s: the VMM provided no secrets page, so the guest cannot attest", self.vm.name
            )
            return
        secrets = SecretsPage.unpack(page)
        keys = (secrets.vmpck0, secrets.vmpck1, secrets.vmpck2, secrets.vmpck3)
        self.vmpcks = tuple(Vmpck(number, key) for number, key in enumerate(keys))

    # Programs of vCPUs.

    def program(self, cpu: GuestCpu) -> Program:
        """Boot, then serve submitted requests. Only the first vCPU does this; the others are
        idle.
        """
        if cpu.index != 0:
            yield WaitUntil(lambda: False)
            return
        try:
            pages = yield from self.boot(cpu)
            while pages is not None:
                yield WaitUntil(lambda: bool(self._calls))
                call = self._calls.popleft()
                call.response = yield from self.request(cpu, pages, self.vmpcks[0], call.request)
        finally:
            self.gone = True

    def submit(self, request: DriverRequest) -> DriverCall:
        """Queue a request from a program in the guest. The returned call receives the response.

        If the guest serves no programs, this method raises ENODEV.
        """
        call = DriverCall(request)
        self._calls.append(call)
        return call

    def withdraw(self, call: DriverCall) -> None:
        """Cancel a queued call. A call that has started still runs; its result is dropped."""
        if call in self._calls:
            self._calls.remove(call)

    # Boot.

    def shared_pages(self, index: int) -> SharedPages | None:
        """Return the shared pages of vCPU ``index``, at the top of the largest slot.

        None if the slot has no room for them.
        """
        slot = self.vm.slots.largest()
        size = (3 + self.data_pages) * PAGE_SIZE
        if slot is None or slot.size < (index + 1) * size:
            return None
        base = slot.end - (index + 1) * size
        return SharedPages(
            ghcb=base,
            request=base + PAGE_SIZE,
            response=base + 2 * PAGE_SIZE,
            data=base + 3 * PAGE_SIZE,
            data_pages=self.data_pages,
        )

    def boot(self, cpu: GuestCpu) -> Generator[Event, int, SharedPages | None]:
        """Register the vCPU's GHCB and return the vCPU's shared pages. Return None if the guest has
        no memory for them, or no keys.
        """
        pages = self.shared_pages(cpu.index)
        if pages is None or not self.vmpcks:
            log.warning("%s: vCPU %d has no memory or no keys", self.vm.name, cpu.index)
            return None
        yield from self.set_page_state_early(cpu, pages.ghcb, PageStateOperation.SHARED)
        answer = yield Vmgexit(pages.ghcb | MsrCode.REGISTER_GPA_REQ)
        if answer != pages.ghcb | MsrCode.REGISTER_GPA_RSP:
            yield from self.terminate(_TERMINATE_REGISTRATION)
        yield from cpu.write(pages.ghcb, bytes(PAGE_SIZE))
        # Like all memory of the guest, these pages become private first.
        yield from self.make_private(cpu, pages, pages.request, 2 + pages.data_pages)
        for page in (pages.request, pages.response):
            yield from self.make_shared(cpu, pages, page, 1)
        if cpu.index == 0 and (buffer := self._bounce_buffer()) is not None:
            large = page_state_calls.LARGE_PAGE // PAGE_SIZE
            yield from self.make_private(cpu, pages, buffer, large)
            yield from self.make_shared(cpu, pages, buffer, large)
        return pages

    def _bounce_buffer(self) -> int | None:
        """Return the GPA of the 2 MiB bounce buffer (Linux's swiotlb); None if memory is too
        small.
        """
        slot = self.vm.slots.largest()
        if slot is None or slot.size < LARGE_MEMORY:
            return None
        large = page_state_calls.LARGE_PAGE
        return (slot.end - _VCPU_PAGES) // large * large - large

    def terminate(self, reason: int) -> Generator[Event, int, None]:
        """Ask the host to end the guest, as ``sev_es_terminate`` does."""
        yield Vmgexit(reason)
        raise GuestTerminatedError

    # Page states.

    def make_shared(
        self, cpu: GuestCpu, shared: SharedPages, gpa: int, pages: int
    ) -> Generator[Event, int, None]:
        """Make pages shared (``set_memory_decrypted``). The host decides what they then contain."""
        yield from cpu.use_private(gpa, pages * PAGE_SIZE)
        yield from self.set_page_state(cpu, shared, gpa, pages, PageStateOperation.SHARED)

    def make_private(
        self, cpu: GuestCpu, shared: SharedPages, gpa: int, pages: int
    ) -> Generator[Event, int, None]:
        """Make pages private (``set_memory_encrypted``), then access them as private pages."""
        yield from self.set_page_state(cpu, shared, gpa, pages, PageStateOperation.PRIVATE)
        yield from cpu.use_private(gpa, pages * PAGE_SIZE)

    def set_page_state_early(
        self, cpu: GuestCpu, gpa: int, operation: PageStateOperation
    ) -> Generator[Event, int, None]:
        """Change the state of one page without a GHCB. If that fails, end the guest."""
        if not (yield from page_state_calls.change_early(gpa, operation)):
            yield from self.page_state_refused(cpu, gpa, 1, operation)

    def set_page_state(
        self,
        cpu: GuestCpu,
        shared: SharedPages,
        gpa: int,
        pages: int,
        operation: PageStateOperation,
    ) -> Generator[Event, int, None]:
        """Change the state of adjacent pages through the vCPU's GHCB. If that fails, end the
        guest.
        """
        if not (yield from page_state_calls.change(cpu, shared.ghcb, gpa, pages, operation)):
            yield from self.page_state_refused(cpu, gpa, pages, operation)

    def page_state_refused(
        self, cpu: GuestCpu, gpa: int, pages: int, operation: PageStateOperation
    ) -> Generator[Event, int, None]:
        """End the guest because its host has not changed the page state."""
        log.warning(
            "%s vCPU %d: %d pages at %#x did not become %s",
            *(self.vm.name, cpu.index, pages, gpa, operation.name.lower()),
        )
        yield from self.terminate(_TERMINATE_PAGE_STATE)

    # The driver.

    def request(
        self, cpu: GuestCpu, pages: SharedPages, vmpck: Vmpck, request: DriverRequest
    ) -> Driver:
        """Send one message, with a certificate buffer if the request has one, and check the answer.

        Follows ``get_ext_report`` and ``snp_send_guest_request``.
        """
        if request.data_pages:
            yield from self.make_shared(cpu, pages, pages.data, request.data_pages)
        while vmpck.busy:
            yield WaitUntil(lambda: not vmpck.busy)
        vmpck.busy = True
        try:
            response = yield from self._send(cpu, pages, vmpck, request)
        finally:
            vmpck.busy = False
        if request.data_pages:
            yield from self.make_private(cpu, pages, pages.data, request.data_pages)
        return response

    def _send(
        self, cpu: GuestCpu, pages: SharedPages, vmpck: Vmpck, request: DriverRequest
    ) -> Driver:
        if vmpck.disabled:
            log.info("%s: VMPCK %d is disabled", self.vm.name, vmpck.number)
            return DriverResponse(-errno.ENOTTY)
        seqno = vmpck.counter + 1
        if seqno >= SEQNO_LIMIT:
            return DriverResponse(-errno.EIO)
        header = header_for(request.msg_type, seqno, vmpck.number, msg_version=request.msg_version)
        yield from cpu.write(pages.response, bytes(MESSAGE_SIZE))
        yield from cpu.write(pages.request, seal(vmpck.key, header, request.payload))

        extended = request.data_pages is not None
        sending = _Sending(
            request,
            ExitCode.SNP_EXT_GUEST_REQUEST if extended else ExitCode.SNP_GUEST_REQUEST,
            request.data_pages or 0,
        )
        result = yield from self._issue_until_answered(cpu, pages, sending)
        # The sequence number has served as a nonce, so it must never be used again.
        vmpck.counter += 2
        if sending.override:
            sending.exitinfo2 = sending.override
            result = result or -errno.EIO

        def response(result: int, payload: bytes = b"", data: bytes = b"") -> DriverResponse:
            return DriverResponse(
                result, sending.exitinfo2, payload, data, sending.pages, sending.exits
            )

        if result == -errno.EIO and sending.exitinfo2 == _INVALID_LEN:
            return response(result)
        if result:
            log.warning("%s: error %d, exitinfo2 %#x", self.vm.name, result, sending.exitinfo2)
            self._disable(vmpck)
            return response(result)
        page = yield from cpu.read(pages.response, MESSAGE_SIZE)
        payload = _checked_response(vmpck.key, header, page, request.response_size)
        if payload is None:
            log.warning("%s: the response cannot be decrypted", self.vm.name)
            self._disable(vmpck)
            return response(-errno.EBADMSG)
        size = (request.data_pages or 0) * PAGE_SIZE
        data = (yield from cpu.read(pages.data, size)) if size else b""
        return response(0, payload, data)

    def _issue_until_answered(
        self, cpu: GuestCpu, pages: SharedPages, sending: _Sending
    ) -> Generator[Event, int, int]:
        """Send the same message until the host is not busy; retry once if the buffer was too
        small.
        """
        started = cpu.now()
        while True:
            result = yield from self._issue(cpu, pages, sending)
            if result == -errno.ENOSPC:
                # The firmware has not seen the message. Sent again without certificates, it reaches
                # the firmware, and both sides advance the sequence number.
                sending.code = ExitCode.SNP_GUEST_REQUEST
                sending.override = _INVALID_LEN
            elif result == -errno.EAGAIN:
                if cpu.now() - started > self.busy_limit:
                    return -errno.ETIMEDOUT
                yield Sleep(self.busy_delay)
            else:
                return result

    def _issue(
        self, cpu: GuestCpu, pages: SharedPages, sending: _Sending
    ) -> Generator[Event, int, int]:
        """Make one VMGEXIT; return 0, a negative errno, or the positive result of a failed exit."""
        page = bytearray((yield from cpu.read(pages.ghcb, PAGE_SIZE)))
        ghcb = GhcbPage(page)
        ghcb.clear_valid_bitmap()
        if sending.code == ExitCode.SNP_EXT_GUEST_REQUEST:
            ghcb.put(Field.RAX, pages.data if sending.pages else 0)
            ghcb.put(Field.RBX, sending.pages)
        sending.exitinfo2 = EXITINFO2_NOT_SENT
        sending.exits += 1
        addresses = pages.request, pages.response
        failure = yield from page_state_calls.call_hypervisor(
            cpu, pages.ghcb, page, sending.code, *addresses
        )
        if failure:
            return failure
        ghcb = GhcbPage(bytearray((yield from cpu.read(pages.ghcb, PAGE_SIZE))))
        sending.exitinfo2 = ghcb.get(Field.SW_EXITINFO2)
        match sending.exitinfo2:
            case 0:
                return 0
            case v if v == _BUSY:
                return -errno.EAGAIN
            case v if v == _INVALID_LEN and sending.code == ExitCode.SNP_EXT_GUEST_REQUEST:
                sending.pages = ghcb.get(Field.RBX)
                return -errno.ENOSPC
            case _:
                return -errno.EIO

    def _disable(self, vmpck: Vmpck) -> None:
        log.warning("%s: disabling VMPCK %d", self.vm.name, vmpck.number)
        vmpck.key = bytes(VMPCK_SIZE)


def _checked_response(key: bytes, sent: MessageHeader, page: bytes, size: int) -> bytes | None:
    """Return the payload of a response, or None if it is not a valid answer to ``sent``."""
    header = MessageHeader.unpack(page)
    if (
        header.msg_seqno != sent.msg_seqno + 1
        or header.msg_type != sent.msg_type + 1
        or header.msg_version != sent.msg_version
        or header.msg_sz > min(size, MAX_PAYLOAD)
    ):
        return None
    try:
        _, payload = open_sealed(key, page)
    except SealError:
        return None
    return payload
