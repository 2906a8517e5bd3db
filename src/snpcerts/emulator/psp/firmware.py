# SPDX-License-Identifier: Apache-2.0
"""The firmware of one platform, which runs one command at a time.

Host commands (``/dev/sev``), launch commands (KVM) and guest requests all take the same lock, as on
hardware, where every command goes through one mailbox. So neither TCBs nor keys can change while
the firmware makes a report.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import replace
from typing import Any, Final, NamedTuple, Self

from cryptography.hazmat.primitives.asymmetric import ec

from snpcerts.abi.guest_message import (
    ALGO_AES_256_GCM,
    HEADER_SIZE,
    HEADER_VERSION,
    MAX_PAYLOAD,
    MESSAGE_SIZE,
    VMPCK_COUNT,
    KeySelect,
    MessageHeader,
)
from snpcerts.abi.kvm import PageType
from snpcerts.abi.product import Product
from snpcerts.abi.psp import (
    FEATURE_VERIFY_MITIGATION,
    FEATURE_VLEK,
    FEATURE_X86_SNP_SHUTDOWN,
    STATUS_ALIAS_CHECK_COMPLETE,
    STATUS_FEATURE_INFO,
    STATUS_MASK_CHIP_ID,
    STATUS_MASK_CHIP_KEY,
    STATUS_RMP_INITIALIZED,
    STATUS_VLEK_EN,
    PlatformStatus,
    SevStatus,
    SnpConfig,
    SnpPlatformStatus,
)
from snpcerts.abi.report import POLICY_KNOWN, POLICY_RESERVED_ONE
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.psp import sev_certificates
from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.chip_model import CHIP_MODELS, ApiVersion, CpuId
from snpcerts.emulator.psp.choices import PUBLISHED, FirmwareChoices, choices_of
from snpcerts.emulator.psp.cpuid_check import CPUID_COUNT_MAX, LIST_HEADER, judge
from snpcerts.emulator.psp.error import FirmwareError
from snpcerts.emulator.psp.guest_context import (
    PAGE_SIZE,
    PAGE_TYPES,
    PAGES_ALONE,
    GuestContext,
    GuestState,
)
from snpcerts.emulator.psp.guest_messages import (
    KINDS,
    MESSAGE_VERSION_MAX,
    PspSnapshot,
    signer,
)
from snpcerts.emulator.psp.id_block import check_author_key, check_id_block
from snpcerts.emulator.psp.message_seal import SealError, header_for, open_sealed, seal
from snpcerts.emulator.psp.platform_state import (
    VLEK_SINCE,
    PlatformState,
)
from snpcerts.emulator.psp.saved_platform import read_platform, write_platform
from snpcerts.errors import UsageError

__all__ = ["ApiVersion", "Firmware", "FirmwareError", "GuestContext"]

# Bits of platform_info, and the policy bits that require each of them.
_SMT, _ECC, _RAPL_DIS, _CIPHERTEXT_HIDING, _ALIAS_CHECKED = 1 << 0, 1 << 2, 1 << 3, 1 << 4, 1 << 5
DEFAULT_PLATFORM_INFO: Final = _SMT | _ECC | _ALIAS_CHECKED
# sev_rmp.h of the published firmware has only bits 0 and 1; so does a genuine report of version 2.
_INFO_FIRST, _INFO_GREW = 0b11, 3
# sev_guest.h of the published firmware reserves bits 21 and up. Later firmware uses 21 to 25.
_POLICY_FIRST, _POLICY_GREW = (1 << 21) - 1, 3
_POLICY_SMT, _POLICY_RAPL_DIS, _POLICY_CIPHERTEXT_HIDING = 1 << 16, 1 << 23, 1 << 24
DEFAULT_MIT_VECTOR: Final = 0x3F  # as in a genuine Turin report
_GUEST_MESSAGES = 0x1FF  # one bit for each kind of message; all are supported
_MITIGATIONS_SINCE = (
    5  # the first report version with mitigations; SNP_VERIFY_MITIGATION appeared with it
)

_SEV_INIT_STATE = 1
_SEV_ES_CONFIGURED = 1 << 8
_LAST_SEQNO = 2**64 - 1
_PAYLOAD_UNIT = 16


class MitigationVectors(NamedTuple):
    """Two bit vectors: the mitigations that the firmware can verify, and those that it has found in
    effect.
    """

    supported: int
    verified: int


class Firmware:
    """The firmware of one platform. Thread-safe.

    If hardware would return a status other than SUCCESS, a command raises :class:`FirmwareError`
    and changes nothing; :meth:`launch_finish` has one exception. ``tcb`` is the initial current,
    committed and reported TCB. ``report_version`` is the newest report version that the firmware
    supports. It must be in :data:`CHIP_MODELS` for the product; the default is the newest.
    ``choices`` selects the behaviour where sources disagree. If it is the published firmware, and
    ``chip`` is of the product that AMD published it for, the defaults are that firmware's version
    number and report version 2. Any other firmware that supports only report version 2 is too old
    for VLEKs. Bits of ``platform_info`` that the firmware does not have are cleared.
    """

    def __init__(
        self,
        chip: Chip,
        *,
        tcb: TcbVersion | None = None,
        version: ApiVersion | None = None,
        report_version: int | None = None,
        choices: FirmwareChoices | None = None,
        initialized: bool = True,
        platform_info: int = DEFAULT_PLATFORM_INFO,
    ) -> None:
        choices = choices_of(None) if choices is None else choices
        model = CHIP_MODELS[chip.product]
        versions = model.firmware
        if choices.name == PUBLISHED and model.published_firmware is not None:
            versions = versions | model.published_firmware
            report_version = report_version or max(model.published_firmware)
        if report_version is None:
            report_version = max(versions)
        if report_version not in versions:
            raise UsageError(
                f"the emulator has no {chip.product.value} firmware that writes reports of version "
                f"{report_version}",
                hint=f"choose from these report versions: {', '.join(map(str, sorted(versions)))}",
            )
        if report_version < _INFO_GREW:
            platform_info &= _INFO_FIRST
        state = PlatformState.at(
            chip.product,
            model.tcb if tcb is None else tcb,
            versions[report_version] if version is None else version,
            choices,
        )
        self._lock = threading.Lock()
        self._guests: set[GuestContext] = set()
        self._platform = PspSnapshot(
            chip=chip,
            state=replace(state, initialized=initialized),
            report_version=report_version,
            cpuid=model.cpuid,
            platform_info=platform_info,
            mit_vector=DEFAULT_MIT_VECTOR,
            mit_supported=DEFAULT_MIT_VECTOR,
        )

    # Properties of the platform.

    @property
    def product(self) -> Product:
        """The chip's product."""
        return self._platform.chip.product

    @property
    def chip(self) -> Chip:
        """The chip this firmware runs on."""
        return self._platform.chip

    @property
    def processor(self) -> CpuId:
        """The processor's family, model and stepping, as the CPUID instruction returns them."""
        return self._platform.cpuid

    @property
    def smt(self) -> bool:
        """Whether SMT (simultaneous multithreading) is on."""
        return bool(self._platform.platform_info & _SMT)

    @property
    def state(self) -> PlatformState:
        """The firmware's variables: TCBs, versions, masks and the loaded VLEK."""
        return self._platform.state

    def vcek_public_key(self, tcb: TcbVersion) -> ec.EllipticCurvePublicKey:
        """Return the public key of this chip's VCEK at ``tcb``, which need not be the reported
        TCB.
        """
        return self.chip.vcek_key(tcb).public_key()

    def signing_public_key(
        self, key_sel: KeySelect = KeySelect.DEFAULT
    ) -> ec.EllipticCurvePublicKey | None:
        """Return the public key that now verifies reports requested with ``key_sel``.

        None if MASK_CHIP_KEY leaves such reports unsigned. Raises :class:`FirmwareError`
        (INVALID_KEY) if the VLEK is requested and none is loaded.
        """
        with self._lock:
            key = signer(self._platform, key_sel)
            if key is None:
                raise FirmwareError(
                    SevStatus.INVALID_KEY, "KEY_SEL requests the VLEK, but no VLEK is loaded"
                )
            return None if key[1] is None else key[1].public_key()

    def save_state(self) -> dict[str, Any]:
        """Return the platform's state as JSON values, with the chip's secret but without guests."""
        with self._lock:
            return write_platform(self._platform)

    @classmethod
    def from_state(cls, saved: dict[str, Any]) -> Self:
        """Create a platform without guests from ``saved``, a result of :meth:`save_state`.

        Raises :class:`snpcerts.errors.InputError` if ``saved`` is not such a result.
        """
        platform = read_platform(saved)
        firmware = cls(platform.chip)
        firmware._platform = platform
        return firmware

    # Host commands.

    def snp_platform_status(self) -> SnpPlatformStatus:
        """SNP_PLATFORM_STATUS: return the platform's status. It works in any state."""
        with self._lock:
            state = self.state
            flags = (
                state.mask_chip_id * STATUS_MASK_CHIP_ID
                | state.mask_chip_key * STATUS_MASK_CHIP_KEY
                | (state.vlek is not None) * STATUS_VLEK_EN
                | (state.version >= VLEK_SINCE) * STATUS_FEATURE_INFO
            )
            rmp = STATUS_RMP_INITIALIZED if state.initialized else 0
            if self._platform.platform_info & _ALIAS_CHECKED:
                rmp |= STATUS_ALIAS_CHECK_COMPLETE
            return SnpPlatformStatus(
                api_major=state.version.major,
                api_minor=state.version.minor,
                state=int(state.initialized),
                rmp=rmp,
                build_id=state.version.build,
                flags=flags,
                guest_count=len(self._guests),
                current_tcb=state.current.pack(),
                reported_tcb=state.reported.pack(),
            )

    def platform_status(self) -> PlatformStatus:
        """PLATFORM_STATUS (plain SEV): return the platform's status, which does not count SNP
        guests.
        """
        with self._lock:
            version = self.state.version
            return PlatformStatus(
                api_major=version.major,
                api_minor=version.minor,
                state=_SEV_INIT_STATE if self.state.initialized else 0,
                flags=_SEV_ES_CONFIGURED,
                build=version.build,
            )

    def pdh_cert_export(self) -> tuple[bytes, bytes]:
        """PDH_CERT_EXPORT: return the certificates of the PDH, the PEK, the OCA and the CEK."""
        with self._lock:
            return sev_certificates.export(self.chip, self.state.version)

    def get_id(self) -> bytes:
        """GET_ID: return the chip ID (64 bytes, or 8 on Turin and Venice), even if MASK_CHIP_ID is
        set.
        """
        return self.chip.hwid

    def snp_init(self) -> None:
        """SNP_INIT: initialise SNP. Fails with INVALID_PLATFORM_STATE if that is already done."""
        with self._lock:
            self._become(self.state.init())

    def snp_shutdown(self) -> None:
        """SNP_SHUTDOWN: end SNP if it is initialised. Fails with DFFLUSH_REQUIRED while guests
        exist.
        """
        with self._lock:
            self._shutdown()

    def reload(self) -> None:
        """Re-initialise: SNP_SHUTDOWN, then SNP_INIT, as when Linux 7 unloads and reloads kvm_amd.

        Fails with DFFLUSH_REQUIRED while guests exist.
        """
        with self._lock:
            self._shutdown()
            self._become(self.state.init())

    def reboot(self, current: TcbVersion | None = None, version: ApiVersion | None = None) -> None:
        """Reboot the host with a BIOS that has this TCB and firmware version. Both default to the
        committed ones.

        Fails with INVALID_CONFIG if the TCB or the version is below the committed one, and with
        DFFLUSH_REQUIRED while guests exist.
        """
        with self._lock:
            after = self.state.reboot(current, version)
            self._shutdown()
            self._become(after.init())

    def snp_verify_mitigation(self, vector: int = 0) -> MitigationVectors:
        """SNP_VERIFY_MITIGATION: verify the mitigation in ``vector``, if any, and return both
        vectors.

        ``vector`` has one bit set, or is 0 to verify nothing. Fails with INVALID_COMMAND on
        firmware that does not write reports of version 5, and with INVALID_PARAM for several bits
        or an unsupported one.
        """
        with self._lock:
            platform = self._platform
            if platform.report_version < _MITIGATIONS_SINCE:
                raise FirmwareError(
                    SevStatus.INVALID_COMMAND,
                    "this firmware does not have the command VERIFY_MITIGATION",
                )
            if vector & (vector - 1) or vector & ~platform.mit_supported:
                raise FirmwareError(
                    SevStatus.INVALID_PARAM,
                    f"mitigation vector: expected 0 or one bit of {platform.mit_supported:#x}, "
                    f"found {vector:#x}",
                )
            self._platform = replace(platform, mit_vector=platform.mit_vector | vector)
            return MitigationVectors(platform.mit_supported, self._platform.mit_vector)

    @property
    def knows_mitigations(self) -> bool:
        """Whether the firmware has SNP_VERIFY_MITIGATION, determined as Linux determines it."""
        if not self.snp_platform_status().flags & STATUS_FEATURE_INFO:
            return False
        return bool(self.snp_feature_info(0)[2] & FEATURE_VERIFY_MITIGATION)

    def snp_feature_info(self, ecx: int) -> tuple[int, int, int, int]:
        """SNP_FEATURE_INFO: return EAX to EDX of subfunction ``ecx``, in any state.

        Fails with INVALID_PARAM for a subfunction above 1, and with INVALID_COMMAND on firmware
        whose SNP_PLATFORM_STATUS does not announce the command.
        """
        with self._lock:
            if self.state.version < VLEK_SINCE:
                raise FirmwareError(
                    SevStatus.INVALID_COMMAND,
                    "this firmware does not have the command FEATURE_INFO",
                )
            if ecx == 0:
                known = FEATURE_VLEK | FEATURE_X86_SNP_SHUTDOWN
                if self._platform.report_version >= _MITIGATIONS_SINCE:
                    known |= FEATURE_VERIFY_MITIGATION
                return 1, 1, known, 0
            if ecx == 1:
                return _GUEST_MESSAGES, 0, 0, 0
            raise FirmwareError(SevStatus.INVALID_PARAM, f"FEATURE_INFO has no subfunction {ecx}")

    def snp_commit(self) -> None:
        """SNP_COMMIT: set the committed and the reported TCB to the current one."""
        with self._lock:
            self._become(self.state.commit())

    def snp_set_config(self, config: SnpConfig) -> None:
        """SNP_SET_CONFIG: set the reported TCB and both mask bits.

        A TCB of zeros resets the reported TCB to the committed one.
        """
        with self._lock:
            self._become(self.state.configure(config))

    def snp_vlek_load(self, blob: bytes) -> None:
        """SNP_VLEK_LOAD: load a wrapped hashstick of 432 bytes."""
        with self._lock:
            self._become(self.state.load_vlek(self.chip, blob))

    def update(
        self,
        current: TcbVersion,
        version: ApiVersion | None = None,
        *,
        mit_supported: int | None = None,
    ) -> None:
        """Install a live firmware update: it changes the current TCB and the version, but not the
        reported TCB.

        ``mit_supported``: the mitigations that the new firmware can verify; None for no change.
        Fails with INVALID_CONFIG if the TCB or the version is below the committed one.
        """
        with self._lock:
            self._become(self.state.update(current, version or self.state.version))
            if mit_supported is not None:
                self._platform = replace(self._platform, mit_supported=mit_supported)

    # Launch.

    def launch_start(
        self, policy: int, *, gosvw: bytes = bytes(16), desired_tsc_khz: int = 0
    ) -> GuestContext:
        """SNP_GCTX_CREATE and SNP_LAUNCH_START: create a guest and begin its launch.

        Fails with POLICY_FAILURE if this platform cannot meet ``policy`` or a reserved bit in it is
        wrong, and with INVALID_PLATFORM_STATE before SNP_INIT.
        """
        with self._lock:
            if not self.state.initialized:
                raise FirmwareError(
                    SevStatus.INVALID_PLATFORM_STATE,
                    "a guest cannot be launched before SNP_INIT",
                )
            self._check_policy(policy)
            context = GuestContext(
                policy,
                launch_tcb=self.state.committed,
                launch_mit_vector=self._platform.mit_vector,
                gosvw=gosvw,
                desired_tsc_khz=desired_tsc_khz,
            )
            self._guests.add(context)
            return context

    def launch_update(
        self, context: GuestContext, gpa: int, page_type: int, data: bytes
    ) -> bytes | None:
        """SNP_LAUNCH_UPDATE: measure one page or several adjacent pages, starting at ``gpa``.

        ``data`` is a whole number of 4096-byte pages; for ZERO and UNMEASURED pages its content is
        ignored. For SECRETS (one page only), returns the page to put at ``gpa``; for other types
        returns None. If a CPUID page has values that this processor does not have, raises
        :class:`CpuidPageError` with the corrected page.
        """
        with self._lock:
            if page_type not in PAGE_TYPES:
                raise FirmwareError(SevStatus.INVALID_PARAM, f"unknown page type {page_type}")
            alone = page_type in PAGES_ALONE
            if not data or len(data) % PAGE_SIZE or (alone and len(data) != PAGE_SIZE):
                raise FirmwareError(
                    SevStatus.INVALID_PAGE_SIZE,
                    f"pages of type {page_type}: expected {'one page' if alone else 'whole pages'} "
                    f"of {PAGE_SIZE} bytes, found {len(data)} bytes",
                )
            self._check_state(context, GuestState.LAUNCHING)
            if gpa % PAGE_SIZE or not 0 <= gpa <= 2**64 - len(data):
                raise FirmwareError(
                    SevStatus.INVALID_ADDRESS, f"GPA {gpa:#x} is not page-aligned or is too high"
                )
            if page_type == PageType.CPUID:
                _check_cpuid_page(data, self._platform.cpuid.signature)
            for start in range(0, len(data), PAGE_SIZE):
                context.measure(gpa + start, page_type, data[start : start + PAGE_SIZE])
            if page_type == PageType.SECRETS:
                return context.secrets_page(self._platform.cpuid.signature)
            return None

    def launch_finish(
        self,
        context: GuestContext,
        host_data: bytes = bytes(32),
        *,
        id_block: tuple[bytes, bytes] | None = None,
        author_key_en: bool = False,
        vcek_disabled: bool = False,
    ) -> None:
        """SNP_LAUNCH_FINISH: let the guest run.

        ``id_block`` is the ID block and its authentication page, as checked by
        :func:`~snpcerts.emulator.psp.id_block.check_id_block`. ``vcek_disabled`` means that the
        firmware refuses requests from this guest that need the VCEK. If the command fails only
        because of the author key, the context keeps the ID block, and the guest's reports contain
        it even if the next SNP_LAUNCH_FINISH has no ID block.
        """
        with self._lock:
            self._check_state(context, GuestState.LAUNCHING)
            if len(host_data) != len(context.host_data):
                raise FirmwareError(
                    SevStatus.INVALID_PARAM, f"HOST_DATA: expected 32 bytes, found {len(host_data)}"
                )
            if id_block is not None:
                context.id_block = check_id_block(
                    *id_block,
                    author=author_key_en,
                    measurement=context.measurement,
                    policy=context.policy,
                )
                if author_key_en:
                    digest = check_author_key(id_block[1])
                    context.id_block = replace(context.id_block, author_key_digest=digest)
            context.id_block_en = id_block is not None
            context.author_key_en = author_key_en
            context.host_data = host_data
            context.vcek_disabled = vcek_disabled
            context.state = GuestState.RUNNING

    def decommission(self, context: GuestContext) -> None:
        """SNP_DECOMMISSION: remove the guest."""
        with self._lock:
            self._check_known(context)
            self._guests.discard(context)
            context.state = GuestState.GONE

    # Guest requests.

    def guest_request(self, context: GuestContext, page: bytes) -> bytes:
        """SNP_GUEST_REQUEST: take a request page of 4096 bytes and return the response page.

        If this returns, the VMPCK's sequence number has advanced by two; if this raises, the number
        has not changed. If a valid message has bad parameters, the response reports that.
        """
        with self._lock:
            self._check_state(context, GuestState.RUNNING)
            vmpck = _check_header(page)
            try:
                header, payload = open_sealed(context.vmpcks[vmpck], page)
            except SealError as error:
                raise FirmwareError(self.state.choices.bad_message_tag, error.message) from None
            expected = context.counters[vmpck] + 1
            if header.msg_seqno != expected or expected >= _LAST_SEQNO:
                raise FirmwareError(
                    SevStatus.AEAD_OFLOW,
                    f"message sequence number: expected {expected}, found {header.msg_seqno}",
                )
            kind = KINDS.get(header.msg_type)
            if kind is None or not 1 <= header.msg_version <= MESSAGE_VERSION_MAX:
                raise FirmwareError(
                    SevStatus.INVALID_PARAM,
                    f"unsupported message type {header.msg_type}, version {header.msg_version}",
                )
            answer = kind.answer(self._platform, context, vmpck, kind.payload(payload))
            response = header_for(
                header.msg_type + 1, expected + 1, vmpck, msg_version=MESSAGE_VERSION_MAX
            )
            sealed = seal(context.vmpcks[vmpck], response, answer)
            context.counters[vmpck] = expected + 1
            return sealed

    # How the commands work; the caller holds the lock.

    def _become(self, state: PlatformState) -> None:
        self._platform = replace(self._platform, state=state)

    def _shutdown(self) -> None:
        if self._guests:
            raise FirmwareError(
                SevStatus.DFFLUSH_REQUIRED, "SNP cannot be shut down while guests exist"
            )
        if self.state.initialized:
            self._become(self.state.shutdown())

    def _check_known(self, context: GuestContext) -> None:
        if context not in self._guests:
            raise FirmwareError(SevStatus.INVALID_GUEST, "this platform has no such guest")

    def _check_state(self, context: GuestContext, expected: GuestState) -> None:
        self._check_known(context)
        if context.state is not expected:
            raise FirmwareError(
                SevStatus.INVALID_GUEST_STATE,
                f"state of the guest: expected {expected.value}, found {context.state.value}",
            )

    def _known_policy(self) -> int:
        """Return the policy bits that this firmware knows. Firmware that writes newer reports knows
        more.
        """
        return POLICY_KNOWN if self._platform.report_version >= _POLICY_GREW else _POLICY_FIRST

    def _check_policy(self, policy: int) -> None:
        version, info = self.state.version, self._platform.platform_info
        reasons = (
            not policy & POLICY_RESERVED_ONE,
            policy & ~self._known_policy(),
            (policy >> 8 & 0xFF, policy & 0xFF) > (version.major, version.minor),
            info & _SMT and not policy & _POLICY_SMT,
            policy & _POLICY_RAPL_DIS and not info & _RAPL_DIS,
            policy & _POLICY_CIPHERTEXT_HIDING and not info & _CIPHERTEXT_HIDING,
        )
        if any(reasons):
            raise FirmwareError(
                SevStatus.POLICY_FAILURE, f"this platform cannot satisfy policy {policy:#x}"
            )


class CpuidPageError(FirmwareError):
    """A CPUID page has values that this processor does not have. ``page`` is the corrected page."""

    def __init__(self, page: bytes) -> None:
        super().__init__(
            SevStatus.INVALID_PARAM, "the CPUID page has values that this processor does not have"
        )
        self.page = page


def _check_cpuid_page(page: bytes, signature: int) -> None:
    count, reserved, more = struct.unpack_from("<IIQ", page)
    if reserved or more or count > CPUID_COUNT_MAX:
        raise FirmwareError(
            SevStatus.INVALID_PARAM,
            f"CPUID page: expected at most {CPUID_COUNT_MAX} functions, and zeros in the reserved "
            "fields of its header",
        )
    right, _, sound = judge(page[LIST_HEADER:], count, signature)
    if not sound:
        raise CpuidPageError(page[:LIST_HEADER] + right + page[LIST_HEADER + len(right) :])


def _check_header(page: bytes) -> int:
    """Return the number of the VMPCK that ``page``, a guest message, is encrypted with.

    Raises :class:`FirmwareError` if the header is malformed.
    """
    if len(page) != MESSAGE_SIZE:
        raise FirmwareError(
            SevStatus.INVALID_PARAM,
            f"message page: expected {MESSAGE_SIZE} bytes, found {len(page)}",
        )
    header = MessageHeader.unpack(page)
    # Reserved fields and the upper half of the tag field are not checked.
    sound = (
        header.algo == ALGO_AES_256_GCM
        and header.hdr_version == HEADER_VERSION
        and header.hdr_sz == HEADER_SIZE
        and 0 < header.msg_sz <= MAX_PAYLOAD
        and header.msg_sz % _PAYLOAD_UNIT == 0
        and header.msg_vmpck < VMPCK_COUNT
    )
    if not sound:
        raise FirmwareError(SevStatus.INVALID_PARAM, "the header of the guest message is malformed")
    return header.msg_vmpck
