# SPDX-License-Identifier: Apache-2.0
"""A relying party's demands on a genuine report.

Each field is one demand. None means that the policy does not make the demand; a verdict then lists
its check as *not asked*. Three demands apply by default. The guest must not be debuggable, and no
migration agent may be able to move it, because a debugger or a migration agent can read the guest's
memory. And no component of the reported TCB may be above that of the current TCB. Firmware compares
the two TCBs as single numbers, so it may report an SNP level that never ran.

Source of the fields: SNP ABI (56860) table "ATTESTATION_REPORT Structure".
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Final, Self

from snpcerts.abi.processor_names import MAX_STEPPING, CpuidRange
from snpcerts.abi.product import Product
from snpcerts.abi.report import VMPL_HOST, SigningKey
from snpcerts.abi.tcb import TcbVersion
from snpcerts.errors import UsageError

REPORT_DATA_SIZE: Final = 64
_U64: Final = 1 << 64


class Revocation(enum.Enum):
    """How a policy treats revocation lists."""

    IGNORE = "ignore"  # ignore revocation lists
    IF_GIVEN = "if-given"  # judge the supplied lists
    REQUIRE = "require"  # refuse unless the caller or the key server supplied a current list


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPolicyBits:
    """The demands on bits of POLICY: True if the bit must be one, False if it must be zero, None if
    it may be either.

    By default, ``debug`` and ``migrate_ma`` must be zero.
    """

    smt: bool | None = None
    migrate_ma: bool | None = False
    debug: bool | None = False
    single_socket: bool | None = None
    cxl_allow: bool | None = None
    mem_aes_256_xts: bool | None = None
    rapl_dis: bool | None = None
    ciphertext_hiding_dram: bool | None = None
    page_swap_disable: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformInfoBits:
    """The demands on bits of PLATFORM_INFO: True if the bit must be one, False if it must be zero,
    None if it may be either.
    """

    smt_en: bool | None = None
    tsme_en: bool | None = None
    ecc_en: bool | None = None
    rapl_dis: bool | None = None
    ciphertext_hiding_dram_en: bool | None = None
    alias_check_complete: bool | None = None
    tio_en: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbFloor:
    """The lowest accepted TCB of each product.

    Reports for a product without a floor are refused. Every component is compared, so a TCB with a
    single lower component is refused.
    """

    milan: TcbVersion | None = None
    genoa: TcbVersion | None = None
    turin: TcbVersion | None = None
    venice: TcbVersion | None = None

    def __post_init__(self) -> None:
        for product in Product:
            floor = self.of(product)
            problem = None if floor is None else product.tcb_problem(floor)
            if problem is not None:
                raise UsageError(problem)

    def of(self, product: Product) -> TcbVersion | None:
        """Return the product's floor; None if the product has none."""
        floor: TcbVersion | None = getattr(self, product.keyword)
        return floor


class WithoutCpuid(enum.Enum):
    """How processor floors treat a report of version 2, which has no CPUID fields."""

    STRICTEST = "strictest"  # require the highest value of each component in its product's floors
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorFloor:
    """The lowest accepted values of TCB components, for the processors in one range of CPUID
    values.

    ``name`` is the processors' name in messages. A component that is None is not checked.
    ``bulletins`` names the security bulletins that the values come from, only for messages.
    """

    processors: CpuidRange
    name: str = ""
    fmc: int | None = None
    bootloader: int | None = None
    tee: int | None = None
    snp: int | None = None
    microcode: int | None = None
    bulletins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        cpuid = self.processors
        for label, (first, last), most in (
            ("models", cpuid.models, 255),
            ("steppings", cpuid.steppings, MAX_STEPPING),
        ):
            if not 0 <= first <= last <= most:
                raise UsageError(
                    f"{label}: expected two numbers from 0 to {most}, the lower one first; "
                    f"found {first} and {last}"
                )
        if not cpuid.products:
            raise UsageError(f"{cpuid}: expected CPUID values of a known SEV-SNP processor")
        asked = self.components()
        if not asked:
            raise UsageError(f"{cpuid}: expected at least one component of the TCB, found none")
        for component, least in asked.items():
            if not 0 <= least <= 255:
                raise UsageError(f"{component}: expected 0 to 255, found {least}")
            for product in cpuid.products:
                if component not in product.tcb_layout.components:
                    raise UsageError(
                        f"{component}: the TCB of {product.value} has no such component"
                    )

    def components(self) -> dict[str, int]:
        """Return the lowest accepted values of the components that this floor checks."""
        values = {name: getattr(self, name) for name in _COMPONENTS}
        return {name: value for name, value in values.items() if value is not None}


_COMPONENTS: Final = ("fmc", "bootloader", "tee", "snp", "microcode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A relying party's demands on a report. Raises :class:`UsageError` for a demand that no report
    can meet.

    ===========================  ================================================================
    field                        demand
    ===========================  ================================================================
    products                     products, any of them
    signing_key                  the kind of key that signed: VCEK or VLEK
    chip_ids                     64-byte chip IDs, any of them
    csp_ids                      providers of a VLEK, any of them
    report_data                  up to 64 bytes, which zero-extended must equal REPORT_DATA
    user_data                    the ``user-data`` in the runtime data of an HCL report
    measurements                 48-byte launch measurements, any of them
    host_data                    32 bytes
    id_key_digests               48-byte digests of ID keys, any of them
    author_key_digests           48-byte digests of author keys, any of them, and
                                 AUTHOR_KEY_EN must be set
    family_id, image_id          16 bytes each
    minimum_guest_svn            GUEST_SVN at least
    vmpls                        VMPLs 0 to 3, any of them; 0xFFFFFFFF is the host's
    guest_policy                 bits of POLICY
    minimum_policy_abi           (major, minor): lowest ABI version in POLICY
    platform_info                bits of PLATFORM_INFO
    launch_mitigations           bits that must be one in LAUNCH_MIT_VECTOR
    current_mitigations          bits that must be one in CURRENT_MIT_VECTOR
    minimum_firmware             (major, minor, build) of the current firmware
    minimum_committed_firmware   the same for the committed firmware
    refuse_provisional_firmware  the current firmware must be committed
    minimum_tcb                  floor of REPORTED_TCB, per product
    minimum_current_tcb          floor of CURRENT_TCB
    minimum_committed_tcb        floor of COMMITTED_TCB
    minimum_launch_tcb           floor of LAUNCH_TCB
    floors                       floors per range of CPUID. Every floor whose range contains the
                                 processor applies to REPORTED_TCB and CURRENT_TCB. A
                                 processor outside all ranges is refused
    floors_without_cpuid         how floors treat a report of version 2
    allow_tcb_above_current      accept a report with a component of the reported TCB above
                                 the current one
    allow_masked_chip_id         accept a VCEK's report that hides its chip ID
    revocation                   how to treat revocation lists
    maximum_crl_age              maximum time since the key server returned the list that
                                 satisfies the demand for one
    ===========================  ================================================================
    """

    products: tuple[Product, ...] | None = None
    signing_key: SigningKey | None = None
    chip_ids: tuple[bytes, ...] | None = None
    csp_ids: tuple[str, ...] | None = None
    report_data: bytes | None = None
    user_data: bytes | None = None
    measurements: tuple[bytes, ...] | None = None
    host_data: bytes | None = None
    id_key_digests: tuple[bytes, ...] | None = None
    author_key_digests: tuple[bytes, ...] | None = None
    family_id: bytes | None = None
    image_id: bytes | None = None
    minimum_guest_svn: int | None = None
    vmpls: tuple[int, ...] | None = None
    guest_policy: GuestPolicyBits = GuestPolicyBits()
    minimum_policy_abi: tuple[int, int] | None = None
    platform_info: PlatformInfoBits = PlatformInfoBits()
    launch_mitigations: int | None = None
    current_mitigations: int | None = None
    minimum_firmware: tuple[int, int, int] | None = None
    minimum_committed_firmware: tuple[int, int, int] | None = None
    refuse_provisional_firmware: bool = False
    minimum_tcb: TcbFloor | None = None
    minimum_current_tcb: TcbFloor | None = None
    minimum_committed_tcb: TcbFloor | None = None
    minimum_launch_tcb: TcbFloor | None = None
    floors: tuple[ProcessorFloor, ...] | None = None
    floors_without_cpuid: WithoutCpuid = WithoutCpuid.STRICTEST
    allow_tcb_above_current: bool = False
    allow_masked_chip_id: bool = False
    revocation: Revocation = Revocation.IF_GIVEN
    maximum_crl_age: timedelta | None = None

    @classmethod
    def authenticity_only(cls) -> Self:
        """Return a policy with no demands, not even the default ones, so that only authenticity is
        checked.
        """
        bits = GuestPolicyBits(debug=None, migrate_ma=None)
        return cls(guest_policy=bits, allow_tcb_above_current=True)

    def __post_init__(self) -> None:
        if self.signing_key not in (None, SigningKey.VCEK, SigningKey.VLEK):
            raise UsageError(f"signing_key: expected VCEK or VLEK, found {self.signing_key!r}")
        for name, size in _SIZES.items():
            value = getattr(self, name)
            if isinstance(value, bytes) or value is None:
                _check_size(name, value, size)
                continue
            _not_empty(name, value)
            for each in value:
                _check_size(name, each, size)
        for name in ("report_data", "user_data"):
            data = getattr(self, name)
            # An empty nonce would be known to everyone.
            if data is not None and not 1 <= len(data) <= REPORT_DATA_SIZE:
                raise UsageError(
                    f"{name}: expected 1 to {REPORT_DATA_SIZE} bytes, found {len(data)}"
                )
        for name in ("products", "csp_ids", "vmpls", "floors"):
            if getattr(self, name) is not None:
                _not_empty(name, getattr(self, name))
        for vmpl in self.vmpls or ():
            if vmpl != VMPL_HOST and not 0 <= vmpl <= 3:
                raise UsageError(
                    f"vmpls: expected 0 to 3, or {VMPL_HOST:#x} for the host, found {vmpl}"
                )
        for name in ("minimum_guest_svn", "launch_mitigations", "current_mitigations"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < _U64:
                raise UsageError(f"{name}: expected 0 to 2^64 - 1, found {number}")
        for name, count in (
            ("minimum_policy_abi", 2),
            ("minimum_firmware", 3),
            ("minimum_committed_firmware", 3),
        ):
            version = getattr(self, name)
            if version is not None and (
                len(version) != count or not all(0 <= part <= 255 for part in version)
            ):
                raise UsageError(f"{name}: expected {count} numbers from 0 to 255, found {version}")
        if self.maximum_crl_age is not None and self.maximum_crl_age <= timedelta(0):
            raise UsageError(
                f"maximum_crl_age: expected an age above 0, found {self.maximum_crl_age}"
            )
        for name in ("minimum_tcb", "minimum_current_tcb", "minimum_committed_tcb"):
            _check_floor(name, getattr(self, name))
        _check_floor("minimum_launch_tcb", self.minimum_launch_tcb)


_SIZES: Final = {
    "chip_ids": 64,
    "measurements": 48,
    "host_data": 32,
    "id_key_digests": 48,
    "author_key_digests": 48,
    "family_id": 16,
    "image_id": 16,
}


def _check_size(name: str, value: bytes | None, size: int) -> None:
    if value is not None and len(value) != size:
        raise UsageError(f"{name}: expected {size} bytes, found {len(value)}")


def _not_empty(name: str, value: tuple[object, ...]) -> None:
    if not value:
        raise UsageError(
            f"{name}: expected at least one value, found an empty list, which no report can match",
            hint=f"to accept any value, leave {name} out",
        )


def _check_floor(name: str, floor: TcbFloor | None) -> None:
    if floor is not None and all(getattr(floor, field.name) is None for field in fields(floor)):
        raise UsageError(
            f"{name}: expected a floor for at least one product, found an empty floor, which no "
            "report can meet"
        )
