# SPDX-License-Identifier: Apache-2.0
"""The firmware's answers to the payloads of guest messages.

Source: SNP ABI (56860) chapter 7, "Guest Messages", and the table of the report. If a well-formed
message has bad parameters, the firmware command still succeeds and the sequence number advances;
the STATUS in the response reports the error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from snpcerts.abi.guest_message import (
    GUEST_FIELD_GUEST_SVN,
    GUEST_FIELD_SELECT_KNOWN,
    GUEST_FIELD_TCB_VERSION,
    MAX_PAYLOAD,
    VMPL_MAX,
    KeyRequest,
    KeyResponse,
    KeySelect,
    MessageType,
    ReportRequest,
    ReportResponse,
    ResponseStatus,
    TscInfoResponse,
)
from snpcerts.abi.report import (
    REPORT_SIZE,
    SIGNATURE_ALGO_ECDSA_P384_SHA384,
    SIGNATURE_PART_SIZE,
    SIGNATURE_SIZE,
    SIGNED_SIZE,
    ReportLayout,
    SigningKey,
)
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.psp.chip import Chip, derive
from snpcerts.emulator.psp.chip_model import CpuId
from snpcerts.emulator.psp.cpuid_check import (
    CPUID_COUNT_MAX,
    LIST_HEADER,
    CpuidFunction,
    judge,
)
from snpcerts.emulator.psp.guest_context import PAGE_SIZE, TSC_FACTOR, GuestContext
from snpcerts.emulator.psp.platform_state import VLEK_SINCE, PlatformState
from snpcerts.errors import FormatError

REFERENCE_CLOCK_KHZ: Final = 99800  # sev_plat.h, REF_CLK_GENOA
_GUEST_CONTEXT_SIZE: Final = 0x300  # size of an exported guest; sev_rmp.h, snp_msg_gctx_t
_GUEST_CONTEXT_VERSION: Final = 3
NO_MIGRATION_AGENT: Final = b"\xff" * 32

_ROOT_VMRK = 1 << 0
_KEY_SEL_SHIFT = 1
_KEY_SEL_MASK = 3
_KEY_SEL_BITS = 3  # bits of the field ROOT_KEY_SELECT: the root, and KEY_SEL
_MIXED_DIGEST = 32  # this many bytes of a digest go into a derived key
_CPUID_SINCE = 3
_MIT_VECTOR_SINCE = 5


@dataclass(frozen=True, slots=True)
class PspSnapshot:
    """The platform's state at one moment, as far as answers to guest messages depend on it."""

    chip: Chip
    state: PlatformState
    report_version: int
    cpuid: CpuId
    platform_info: int
    mit_vector: int  # mitigations that are in effect and have been verified
    mit_supported: int  # mitigations that this firmware can verify


class _BadRequestError(Exception):
    def __init__(self, status: ResponseStatus) -> None:
        super().__init__(status)
        self.status = status


Signer = tuple[SigningKey, ec.EllipticCurvePrivateKey | None]
_UNSIGNED: Final[Signer] = (SigningKey.NONE, None)


def signer(
    platform: PspSnapshot, select: KeySelect, *, vcek_disabled: bool = False
) -> Signer | None:
    """Return the key that signs reports requested with KEY_SEL ``select``.

    Returns None if the request fails: it selects a VLEK and none is loaded, or it needs the VCEK
    and ``vcek_disabled`` is set. Returns ``(NONE, None)`` if MASK_CHIP_KEY leaves the report
    unsigned.
    """
    state = platform.state
    vlek = state.vlek
    if vlek is not None and select in (KeySelect.DEFAULT, KeySelect.VLEK):
        if state.mask_chip_key and state.choices.mask_chip_key_stops_vlek:
            return _UNSIGNED
        return SigningKey.VLEK, vlek.key()
    if select is KeySelect.VLEK or vcek_disabled:
        return None
    if state.mask_chip_key:
        return _UNSIGNED
    return SigningKey.VCEK, platform.chip.vcek_key(state.vcek_tcb)


def answer_report(
    platform: PspSnapshot, context: GuestContext, vmpck: int, payload: bytes
) -> bytes:
    """Return the MSG_REPORT_RSP for ``payload``, a MSG_REPORT_REQ of 96 bytes.

    The response always has the same size. After an error its report is all zero, but REPORT_SIZE is
    not.
    """
    request = ReportRequest.unpack(payload)
    response = ReportResponse(report_size=REPORT_SIZE)
    try:
        if any(request.rsvd) or request.key_sel > _KEY_SEL_MASK:
            raise _BadRequestError(ResponseStatus.INVALID_PARAM)
        key = _select(platform, context, request.key_sel)
        if request.vmpl < vmpck:
            raise _BadRequestError(ResponseStatus.INVALID_PARAM)
        if request.vmpl > VMPL_MAX and platform.state.choices.report_vmpl_at_most_three:
            raise _BadRequestError(ResponseStatus.INVALID_PARAM)
    except _BadRequestError as error:
        return replace(response, status=error.status).pack() + bytes(REPORT_SIZE)
    return response.pack() + make_report(platform, context, request.vmpl, request.report_data, key)


def make_report(
    platform: PspSnapshot, context: GuestContext, vmpl: int, report_data: bytes, key: Signer
) -> bytes:
    """Return a report of 1184 bytes signed with ``key``, or unsigned if ``key`` has no private
    key.
    """
    state = platform.state
    signing_key, private_key = key
    identity = context.id_block
    with_cpuid = platform.report_version >= _CPUID_SINCE
    with_vectors = platform.report_version >= _MIT_VECTOR_SINCE
    fields = ReportLayout(
        version=platform.report_version,
        guest_svn=identity.guest_svn,
        policy=context.policy,
        family_id=identity.family_id,
        image_id=identity.image_id,
        vmpl=vmpl,
        signature_algo=SIGNATURE_ALGO_ECDSA_P384_SHA384,
        current_tcb=state.current.pack(),
        platform_info=platform.platform_info,
        flags=context.author_key_en | state.mask_chip_key << 1 | signing_key << 2,
        report_data=report_data,
        measurement=context.measurement,
        host_data=context.host_data,
        id_key_digest=identity.id_key_digest,
        author_key_digest=identity.author_key_digest,
        report_id=context.report_id,
        report_id_ma=NO_MIGRATION_AGENT,
        reported_tcb=state.reported.pack(),
        cpuid_family=platform.cpuid.family if with_cpuid else 0,
        cpuid_model=platform.cpuid.model if with_cpuid else 0,
        cpuid_stepping=platform.cpuid.stepping if with_cpuid else 0,
        chip_id=bytes(64) if state.mask_chip_id else platform.chip.chip_id,
        committed_tcb=state.committed.pack(),
        current_build=state.version.build,
        current_minor=state.version.minor,
        current_major=state.version.major,
        committed_build=state.committed_version.build,
        committed_minor=state.committed_version.minor,
        committed_major=state.committed_version.major,
        launch_tcb=context.launch_tcb.pack(),
        launch_mit_vector=context.launch_mit_vector if with_vectors else 0,
        current_mit_vector=platform.mit_vector if with_vectors else 0,
    )
    signed = fields.pack()[:SIGNED_SIZE]
    if private_key is None:
        return signed + bytes(SIGNATURE_SIZE)
    r, s = decode_dss_signature(private_key.sign(signed, ec.ECDSA(SHA384())))
    parts = b"".join(part.to_bytes(SIGNATURE_PART_SIZE, "little") for part in (r, s))
    return signed + parts.ljust(SIGNATURE_SIZE, b"\0")


def answer_key(platform: PspSnapshot, context: GuestContext, vmpck: int, payload: bytes) -> bytes:
    """Return the MSG_KEY_RSP, with a key of 32 bytes, for a MSG_KEY_REQ of version 1.

    The key is derived from the same inputs as AMD's, but with a different formula. It always
    depends on the VMPL, HOST_DATA and the author key or, without one, the ID key. If the root key
    is a VCEK, it is the VCEK of the TCB in the request or, if the request names no TCB, the VCEK
    that signs reports.
    """
    request = KeyRequest.unpack(payload)
    try:
        key = _derived_key(platform, context, vmpck, request)
    except _BadRequestError as error:
        return KeyResponse(status=error.status).pack()
    return KeyResponse(key=key).pack()


def answer_tsc_info(
    _platform: PspSnapshot, context: GuestContext, _vmpck: int, payload: bytes
) -> bytes:
    """Return a MSG_TSC_INFO_RSP of 128 bytes: the guest's TSC relative to the reference clock."""
    if any(payload):
        return TscInfoResponse(status=ResponseStatus.INVALID_PARAM).pack()
    return TscInfoResponse(
        guest_tsc_scale=tsc_scale(context.desired_tsc_khz), tsc_factor=TSC_FACTOR
    ).pack()


def tsc_scale(desired_khz: int) -> int:
    """Return ``desired_khz`` divided by the reference clock's frequency, in 8.32 fixed point.

    The result is rounded up.
    """
    whole, rest = divmod(desired_khz, REFERENCE_CLOCK_KHZ)
    return (whole & 0xFF) << 32 | -(-(rest << 32) // REFERENCE_CLOCK_KHZ) & 0xFFFF_FFFF


def answer_cpuid(
    platform: PspSnapshot, _context: GuestContext, _vmpck: int, payload: bytes
) -> bytes:
    """Return a MSG_CPUID_RSP as long as the request, with the request's CPUID functions set to
    permitted values.
    """
    count, reserved, more = struct.unpack_from("<IIQ", payload)
    status, judged, functions = ResponseStatus.SUCCESS, 0, b""
    if reserved or more or count > CPUID_COUNT_MAX:
        status = ResponseStatus.INVALID_PARAM
    else:
        right, judged, sound = judge(
            payload[LIST_HEADER:].ljust(CPUID_COUNT_MAX * CpuidFunction.SIZE, b"\0"),
            count,
            platform.cpuid.signature,
        )
        functions = right
        if not sound:
            status = ResponseStatus.INVALID_PARAM
    answer = struct.pack("<IIQ", status, judged, 0) + functions
    return answer.ljust(len(payload), b"\0")[: len(payload)]


def _answer_export(
    _platform: PspSnapshot, _context: GuestContext, _vmpck: int, payload: bytes
) -> bytes:
    """Return a MSG_EXPORT_RSP that reports an error and exports no guest."""
    address, flags, reserved = struct.unpack_from("<QII", payload)
    status = _of_context(address, sound=not flags >> 1 and not reserved)
    head = struct.pack("<III", status, _GUEST_CONTEXT_SIZE, _GUEST_CONTEXT_VERSION)
    return head.ljust(MAX_PAYLOAD, b"\0")


def _answer_import(
    _platform: PspSnapshot, _context: GuestContext, _vmpck: int, payload: bytes
) -> bytes:
    address, size, version = struct.unpack_from("<QII", payload)
    known = (size, version) == (_GUEST_CONTEXT_SIZE, _GUEST_CONTEXT_VERSION)
    return _short(_of_context(address, sound=known and not any(payload[0x10:0x20])))


def _answer_absorb(
    _platform: PspSnapshot, _context: GuestContext, _vmpck: int, payload: bytes
) -> bytes:
    (address,) = struct.unpack_from("<Q", payload)
    return _short(_of_context(address, sound=not any(payload[0x10:0x20])))


def _answer_vmrk(
    _platform: PspSnapshot, _context: GuestContext, vmpck: int, payload: bytes
) -> bytes:
    (address,) = struct.unpack_from("<Q", payload)
    return _short(_of_context(address, sound=not vmpck and not any(payload[0x08:0x20])))


def _answer_absorb_noma(
    _platform: PspSnapshot, _context: GuestContext, _vmpck: int, payload: bytes
) -> bytes:
    # A guest launched without IMI pages has an IMD of zeros, which is not a valid measurement.
    sound = not any(payload[:0x08]) and not any(payload[0x10:0x20])
    return _short(ResponseStatus.BAD_MEASUREMENT if sound else ResponseStatus.INVALID_PARAM)


def _of_context(address: int, *, sound: bool) -> ResponseStatus:
    """Return the error status for a message that names another guest's context. No such context
    exists, because the emulator does not migrate guests.
    """
    if address % PAGE_SIZE or not sound:
        return ResponseStatus.INVALID_PARAM
    return ResponseStatus.INVALID_GUEST


def _short(status: ResponseStatus) -> bytes:
    return status.to_bytes(4, "little").ljust(0x10, b"\0")


@dataclass(frozen=True, slots=True)
class MessageKind:
    """One kind of guest message that the firmware knows, and the function that answers it.

    ``size`` is the size of the payload in bytes: a shorter payload is padded with zeros, and the
    rest of a longer one is ignored. 0 accepts any size.
    """

    size: int
    answer: Callable[[PspSnapshot, GuestContext, int, bytes], bytes]

    def payload(self, given: bytes) -> bytes:
        """Return ``given``, padded or truncated to the size that the firmware reads."""
        return given.ljust(self.size, b"\0")[: self.size] if self.size else given


MESSAGE_VERSION_MAX: Final = 1
# By MSG_TYPE. Newer firmware also has version 2 of MSG_KEY_REQ, which is not emulated.
KINDS: Final[dict[int, MessageKind]] = {
    MessageType.CPUID_REQ: MessageKind(0, answer_cpuid),
    MessageType.KEY_REQ: MessageKind(KeyRequest.SIZE, answer_key),
    MessageType.REPORT_REQ: MessageKind(ReportRequest.SIZE, answer_report),
    MessageType.EXPORT_REQ: MessageKind(0x10, _answer_export),
    MessageType.IMPORT_REQ: MessageKind(0x20, _answer_import),
    MessageType.ABSORB_REQ: MessageKind(0x20, _answer_absorb),
    MessageType.VMRK_REQ: MessageKind(0x40, _answer_vmrk),
    MessageType.ABSORB_NOMA_REQ: MessageKind(0x20, _answer_absorb_noma),
    MessageType.TSC_INFO_REQ: MessageKind(TscInfoResponse.SIZE, answer_tsc_info),
}


def _select(platform: PspSnapshot, context: GuestContext, value: int) -> Signer:
    if value and platform.state.version < VLEK_SINCE:
        raise _BadRequestError(ResponseStatus.INVALID_PARAM)  # a reserved field before VLEKs
    key = None
    if value in set(KeySelect):
        key = signer(platform, KeySelect(value), vcek_disabled=context.vcek_disabled)
    if key is None:
        raise _BadRequestError(ResponseStatus.INVALID_KEY)
    return key


def _derived_key(
    platform: PspSnapshot, context: GuestContext, vmpck: int, request: KeyRequest
) -> bytes:
    state, selected = platform.state, request.guest_field_select
    if request.root_key_select >> _KEY_SEL_BITS or request.rsvd:
        raise _BadRequestError(ResponseStatus.INVALID_PARAM)
    vmrk = request.root_key_select & _ROOT_VMRK
    root_key = None
    if not vmrk:
        if state.mask_chip_key:
            raise _BadRequestError(ResponseStatus.INVALID_KEY)
        root_key, _ = _select(platform, context, request.root_key_select >> _KEY_SEL_SHIFT)
    if request.vmpl < vmpck or selected & ~GUEST_FIELD_SELECT_KNOWN:
        raise _BadRequestError(ResponseStatus.INVALID_PARAM)
    identity, tcb = context.id_block, state.vcek_tcb
    if selected & GUEST_FIELD_TCB_VERSION:
        tcb = _permitted_tcb(state, request.tcb_version)
    if selected & GUEST_FIELD_GUEST_SVN and request.guest_svn > identity.guest_svn:
        raise _BadRequestError(ResponseStatus.INVALID_PARAM)
    if vmrk:
        root, name = context.vmrk, b"VMRK"
    elif root_key is SigningKey.VLEK and state.vlek is not None:
        root, name = state.vlek.hashstick, b"VLEK"
    else:
        root, name = platform.chip.guest_key_root(tcb), b"VCEK"
    mixed = (
        context.policy.to_bytes(8, "little"),
        identity.image_id,
        identity.family_id,
        context.measurement[:_MIXED_DIGEST],
        request.guest_svn.to_bytes(4, "little"),
        request.tcb_version,
    )
    chosen = b"".join(value for bit, value in enumerate(mixed) if selected >> bit & 1)
    key_kind, vouching = 0, bytes(_MIXED_DIGEST)
    if context.author_key_en:
        key_kind, vouching = 2, identity.author_key_digest[:_MIXED_DIGEST]
    elif context.id_block_en:
        key_kind, vouching = 1, identity.id_key_digest[:_MIXED_DIGEST]
    always = (
        name,
        bytes((key_kind,)),
        selected.to_bytes(8, "little"),
        request.vmpl.to_bytes(4, "little"),
        context.host_data,
        vouching,
    )
    return derive(root, "key for a guest", b"".join(always) + chosen, 32)


def _permitted_tcb(state: PlatformState, tcb: bytes) -> TcbVersion:
    """Return the TCB that a key request names. Refuse it if a component is above the committed
    one.
    """
    try:
        asked = TcbVersion.unpack(tcb, state.product.tcb_layout)
    except FormatError:
        raise _BadRequestError(ResponseStatus.INVALID_PARAM) from None
    if not state.committed.covers(asked):
        raise _BadRequestError(ResponseStatus.INVALID_PARAM)
    return asked
