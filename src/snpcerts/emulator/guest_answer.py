# SPDX-License-Identifier: Apache-2.0
"""What the firmware answers to the payload of a guest message.

Source: SNP ABI (56860) chapter 7, "Guest Messages", and the report's table. A
well-formed message with bad parameters is answered, with a STATUS in the
answer: the firmware command succeeds and the sequence number advances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from snpcerts.abi.guest_message import (
    GUEST_FIELD_SELECT_KNOWN,
    VMPL_MAX,
    KeyRequest,
    KeyResponse,
    KeySelect,
    MessageType,
    ReportRequest,
    ReportResponse,
    ResponseStatus,
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
from snpcerts.emulator.chip import Chip, derive
from snpcerts.emulator.guest_context import GuestContext
from snpcerts.emulator.platform_state import VLEK_SINCE, PlatformState
from snpcerts.errors import FormatError

TSC_INFO_SIZE: Final = 128
NO_MIGRATION_AGENT: Final = b"\xff" * 32

_ROOT_VMRK = 1 << 0
_KEY_SEL_SHIFT = 1
_KEY_SEL_MASK = 3
_CPUID_SINCE = 3
_MIT_VECTOR_SINCE = 5


@dataclass(frozen=True, slots=True)
class CpuId:
    """Combined family and model, and stepping, as reports of version 3 and later carry them."""

    family: int
    model: int
    stepping: int

    @property
    def signature(self) -> int:
        """EAX of CPUID leaf 1."""
        return (
            self.stepping
            | (self.model & 0xF) << 4
            | 0xF << 8
            | (self.model >> 4) << 16
            | (self.family - 0xF) << 20
        )


@dataclass(frozen=True, slots=True)
class PspSnapshot:
    """All that an answer may depend on besides the guest: one moment of one platform."""

    chip: Chip
    state: PlatformState
    report_version: int
    cpuid: CpuId
    platform_info: int
    mit_vector: int  # mitigations that are in force, and verified to be
    mit_supported: int  # those this firmware can verify


class _BadRequestError(Exception):
    def __init__(self, status: ResponseStatus) -> None:
        super().__init__(status)
        self.status = status


Signer = tuple[SigningKey, ec.EllipticCurvePrivateKey | None]
_UNSIGNED: Final[Signer] = (SigningKey.NONE, None)


def signer(
    platform: PspSnapshot, select: KeySelect, *, vcek_disabled: bool = False
) -> Signer | None:
    """The key that signs for this KEY_SEL, or None when there is no such key.

    ``(NONE, None)`` while MASK_CHIP_KEY leaves the report unsigned.
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
    """MSG_REPORT_RSP to a MSG_REPORT_REQ of 96 bytes.

    After an error the answer is the 32 bytes before the report, REPORT_SIZE 0.
    """
    request = ReportRequest.unpack(payload)
    try:
        if any(request.rsvd) or request.key_sel > _KEY_SEL_MASK:
            raise _BadRequestError(ResponseStatus.INVALID_PARAM)
        _check_vmpl(request.vmpl, vmpck)
        key = _select(platform, context, request.key_sel)
    except _BadRequestError as error:
        return ReportResponse(status=error.status).pack()
    report = make_report(platform, context, request.vmpl, request.report_data, key)
    return ReportResponse(report_size=REPORT_SIZE).pack() + report


def make_report(
    platform: PspSnapshot, context: GuestContext, vmpl: int, report_data: bytes, key: Signer
) -> bytes:
    """A report of 1184 bytes, signed with ``key`` if that is one."""
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
        flags=identity.author_key_en | state.mask_chip_key << 1 | signing_key << 2,
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
    """MSG_KEY_RSP to a MSG_KEY_REQ, version 1: a key of 32 bytes.

    The same root and the same selected fields give the same key, on this chip
    or, with a VLEK as root, on any of its provider. AMD's formula is another.
    """
    request = KeyRequest.unpack(payload)
    try:
        key = _derived_key(platform, context, vmpck, request)
    except _BadRequestError as error:
        return KeyResponse(status=error.status).pack()
    return KeyResponse(key=key).pack()


def answer_tsc_info(
    _platform: PspSnapshot, _context: GuestContext, _vmpck: int, payload: bytes
) -> bytes:
    """MSG_TSC_INFO_RSP of 128 bytes: success, no scaling, no offset."""
    if any(payload):
        return ResponseStatus.INVALID_PARAM.to_bytes(4, "little").ljust(TSC_INFO_SIZE, b"\0")
    return bytes(TSC_INFO_SIZE)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request the firmware knows: its payload's size in bytes, and the answer."""

    size: int
    answer: Callable[[PspSnapshot, GuestContext, int, bytes], bytes]


# By (MSG_TYPE, MSG_VERSION). Migration messages and version 2 of MSG_KEY_REQ are not emulated.
KINDS: Final[dict[tuple[int, int], Kind]] = {
    (MessageType.REPORT_REQ, 1): Kind(ReportRequest.SIZE, answer_report),
    (MessageType.KEY_REQ, 1): Kind(KeyRequest.SIZE, answer_key),
    (MessageType.TSC_INFO_REQ, 1): Kind(TSC_INFO_SIZE, answer_tsc_info),
}


def _check_vmpl(vmpl: int, vmpck: int) -> None:
    # A VMPCK speaks for its own VMPL and for less privileged ones, never for more.
    if not vmpck <= vmpl <= VMPL_MAX:
        raise _BadRequestError(ResponseStatus.INVALID_PARAM)


def _select(platform: PspSnapshot, context: GuestContext, value: int) -> Signer:
    if value not in set(KeySelect):
        raise _BadRequestError(ResponseStatus.INVALID_PARAM)
    if value and platform.state.version < VLEK_SINCE:
        raise _BadRequestError(ResponseStatus.INVALID_PARAM)  # reserved in those days
    key = signer(platform, KeySelect(value), vcek_disabled=context.vcek_disabled)
    if key is None:
        raise _BadRequestError(ResponseStatus.INVALID_KEY)
    return key


def _derived_key(
    platform: PspSnapshot, context: GuestContext, vmpck: int, request: KeyRequest
) -> bytes:
    state, selected = platform.state, request.guest_field_select
    select = request.root_key_select >> _KEY_SEL_SHIFT
    if select > _KEY_SEL_MASK or request.rsvd or selected & ~GUEST_FIELD_SELECT_KNOWN:
        raise _BadRequestError(ResponseStatus.INVALID_PARAM)
    _check_vmpl(request.vmpl, vmpck)
    identity = context.id_block
    if request.guest_svn > identity.guest_svn or not _may_derive_for(state, request.tcb_version):
        raise _BadRequestError(ResponseStatus.INVALID_PARAM)
    if request.root_key_select & _ROOT_VMRK:
        root, name = context.vmrk, b"VMRK"
    elif state.mask_chip_key:
        raise _BadRequestError(ResponseStatus.INVALID_KEY)
    elif _select(platform, context, select)[0] is SigningKey.VLEK and state.vlek is not None:
        root, name = state.vlek.hashstick, b"VLEK"
    else:
        root, name = platform.chip.guest_key_root(), b"VCEK"
    mixed = (
        context.policy.to_bytes(8, "little"),
        identity.image_id,
        identity.family_id,
        context.measurement,
        request.guest_svn.to_bytes(4, "little"),
        request.tcb_version,
    )
    chosen = b"".join(value for bit, value in enumerate(mixed) if selected >> bit & 1)
    fixed = name + selected.to_bytes(8, "little") + request.vmpl.to_bytes(4, "little")
    return derive(root, "key for a guest", fixed + chosen, 32)


def _may_derive_for(state: PlatformState, tcb: bytes) -> bool:
    try:
        return state.committed.covers(TcbVersion.unpack(tcb, state.product.tcb_layout))
    except FormatError:
        return False
