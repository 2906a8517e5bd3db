# SPDX-License-Identifier: Apache-2.0
"""Every reason to refuse certificates or a report, each with a stable code and a sentence.

Programs and dashboards test the code, whose meaning never changes. The message says what was found
in this case, and its wording may change. Most codes also say which check has failed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class NextStep(enum.StrEnum):
    """What the caller should do about a reason."""

    REFUSE = "refuse"  # the evidence is bad or unacceptable: another call will refuse it again
    RETRY_LATER = "retry-later"  # something needed is not available now
    FIX_USAGE = "fix-usage"  # the caller has not supplied something needed


class Authenticity(enum.StrEnum):
    """The checks that a genuine report passes. The value is the check's name."""

    REPORT_LAYOUT = "report-layout"
    LEAF = "leaf"
    INTERMEDIATE = "intermediate"
    ROOT = "root"
    ANCHOR = "anchor"
    CHAIN_PRODUCT = "chain-product"
    VALIDITY = "validity"
    REVOCATION = "revocation"
    PRODUCT = "product"
    CHIP_ID = "chip-id"
    REPORTED_TCB = "reported-tcb"
    REPORT_SIGNATURE = "report-signature"
    RUNTIME_DATA = "runtime-data"


class ReasonCode(enum.StrEnum):
    """The stable code of a reason.

    ``check`` is the check of authenticity that has failed. It is None for codes of the policy's
    checks, which are named after the code, and for codes without a check. ``description`` is the
    code's sentence in the documentation. ``next_step`` says what the caller should do.
    """

    check: Authenticity | None
    description: str
    next_step: NextStep

    # Type checkers take a look-up, such as ReasonCode("leaf-key"), for a call of this method. The
    # defaults are only for them.
    def __new__(
        cls,
        code: str,
        check: Authenticity | None = None,
        description: str = "",
        next_step: NextStep = NextStep.REFUSE,
    ) -> ReasonCode:
        member = str.__new__(cls, code)
        member._value_ = code
        member.check = check
        member.description = description
        member.next_step = next_step
        return member

    # About the report alone.
    REPORT_SIZE = (
        "report-size",
        Authenticity.REPORT_LAYOUT,
        "The report does not have 1184 bytes.",
    )
    REPORT_VERSION = (
        "report-version",
        Authenticity.REPORT_LAYOUT,
        "The report's version is not 2, 3, 4 or 5.",
    )
    REPORT_POLICY = (
        "report-policy",
        Authenticity.REPORT_LAYOUT,
        "The guest policy has undefined bits set.",
    )
    REPORT_SIGNATURE_ALGORITHM = (
        "report-signature-algorithm",
        Authenticity.REPORT_LAYOUT,
        "The report does not name ECDSA P-384 with SHA-384 as its signature algorithm.",
    )
    REPORT_FLAGS = (
        "report-flags",
        Authenticity.REPORT_LAYOUT,
        "Reserved bits of the flags word are set.",
    )
    REPORT_SIGNING_KEY = (
        "report-signing-key",
        Authenticity.REPORT_LAYOUT,
        "The report names a reserved signing key.",
    )
    REPORT_RESERVED = (
        "report-reserved",
        Authenticity.REPORT_LAYOUT,
        "Bytes that must be zero in a report of this version are not zero.",
    )
    REPORT_UNSIGNED = (
        "report-unsigned",
        Authenticity.REPORT_SIGNATURE,
        "The report says that no key signed it: the host masks the chip's key (MASK_CHIP_KEY), "
        "and no VLEK signed in its place.",
    )
    # About which certificates are available.
    VCEK_MISSING = (
        "vcek-missing",
        Authenticity.LEAF,
        "A VCEK signed the report, and its certificate is missing.",
        NextStep.FIX_USAGE,
    )
    VLEK_MISSING = (
        "vlek-missing",
        Authenticity.LEAF,
        "A VLEK signed the report, and its certificate is missing.",
        NextStep.FIX_USAGE,
    )
    ASK_MISSING = (
        "ask-missing",
        Authenticity.INTERMEDIATE,
        "The issuer's certificate (ASK or ASVK) is missing.",
        NextStep.FIX_USAGE,
    )
    ARK_MISSING = (
        "ark-missing",
        Authenticity.ROOT,
        "The root certificate (ARK) is missing.",
        NextStep.FIX_USAGE,
    )
    VCEK_UNREADABLE = (
        "vcek-unreadable",
        Authenticity.LEAF,
        "The VCEK is not a single X.509 v3 certificate.",
    )
    VLEK_UNREADABLE = (
        "vlek-unreadable",
        Authenticity.LEAF,
        "The VLEK is not a single X.509 v3 certificate.",
    )
    ASK_UNREADABLE = (
        "ask-unreadable",
        Authenticity.INTERMEDIATE,
        "The ASK or ASVK is not a single X.509 v3 certificate.",
    )
    ARK_UNREADABLE = (
        "ark-unreadable",
        Authenticity.ROOT,
        "The ARK is not a single X.509 v3 certificate.",
    )
    COLLATERAL_UNAVAILABLE = (
        "collateral-unavailable",
        None,
        "A certificate or revocation list is missing, because a source could not be reached.",
        NextStep.RETRY_LATER,
    )
    COLLATERAL_NOT_FOUND = (
        "collateral-not-found",
        None,
        (
            "No source has the missing certificate or revocation list. At least one source "
            "answered that it does not exist. Key servers have given this answer for valid "
            "chips, too."
        ),
        NextStep.FIX_USAGE,
    )
    # About the leaf: VCEK or VLEK.
    LEAF_PROFILE = (
        "leaf-profile",
        Authenticity.LEAF,
        "An AMD extension of the leaf is missing, malformed, out of range, unknown, or not "
        "allowed in this leaf.",
    )
    LEAF_KEY = (
        "leaf-key",
        Authenticity.LEAF,
        "The leaf's key is not on the curve P-384.",
    )
    LEAF_KIND = (
        "leaf-kind",
        Authenticity.LEAF,
        "The leaf is not of the kind (VCEK or VLEK) that signed the report.",
    )
    LEAF_EXTENSIONS = (
        "leaf-extensions",
        Authenticity.LEAF,
        "The leaf has an unknown critical extension.",
    )
    LEAF_SIGNATURE_ALGORITHM = (
        "leaf-signature-algorithm",
        Authenticity.LEAF,
        "The leaf is not signed with AMD's algorithm, RSASSA-PSS.",
    )
    LEAF_ISSUER = (
        "leaf-issuer",
        Authenticity.LEAF,
        "The leaf names an issuer other than the supplied ASK or ASVK.",
    )
    LEAF_SIGNATURE = (
        "leaf-signature",
        Authenticity.LEAF,
        "The key of the ASK or ASVK did not sign the leaf.",
    )
    LEAF_NOT_YET_VALID = (
        "leaf-not-yet-valid",
        Authenticity.VALIDITY,
        "The leaf is not valid yet.",
    )
    LEAF_EXPIRED = (
        "leaf-expired",
        Authenticity.VALIDITY,
        "The leaf has expired.",
    )
    # About the intermediate: ASK or ASVK.
    ASK_NAME = (
        "ask-name",
        Authenticity.INTERMEDIATE,
        "The issuer's name is not that of the required ASK or ASVK.",
    )
    ASK_KEY = (
        "ask-key",
        Authenticity.INTERMEDIATE,
        "The issuer's key is not an RSA key of 4096 to 16384 bits.",
    )
    ASK_CA = (
        "ask-ca",
        Authenticity.INTERMEDIATE,
        "The issuer is not allowed to issue certificates.",
    )
    ASK_EXTENSIONS = (
        "ask-extensions",
        Authenticity.INTERMEDIATE,
        "The issuer has an unknown critical extension.",
    )
    ASK_SIGNATURE_ALGORITHM = (
        "ask-signature-algorithm",
        Authenticity.INTERMEDIATE,
        "The issuer is not signed with AMD's algorithm, RSASSA-PSS.",
    )
    ASK_ISSUER = (
        "ask-issuer",
        Authenticity.INTERMEDIATE,
        "The issuer names an issuer other than the supplied ARK.",
    )
    ASK_SIGNATURE = (
        "ask-signature",
        Authenticity.INTERMEDIATE,
        "The ARK's key did not sign the issuer.",
    )
    ASK_NOT_YET_VALID = (
        "ask-not-yet-valid",
        Authenticity.VALIDITY,
        "The issuer is not valid yet.",
    )
    ASK_EXPIRED = (
        "ask-expired",
        Authenticity.VALIDITY,
        "The issuer has expired.",
    )
    # About the root: ARK.
    ARK_NAME = (
        "ark-name",
        Authenticity.ROOT,
        "The root's name is not that of an ARK.",
    )
    ARK_KEY = (
        "ark-key",
        Authenticity.ROOT,
        "The root's key is not an RSA key of 4096 to 16384 bits.",
    )
    ARK_CA = (
        "ark-ca",
        Authenticity.ROOT,
        "The root is not allowed to issue certificates.",
    )
    ARK_EXTENSIONS = (
        "ark-extensions",
        Authenticity.ROOT,
        "The root has an unknown critical extension.",
    )
    ARK_SIGNATURE_ALGORITHM = (
        "ark-signature-algorithm",
        Authenticity.ROOT,
        "The root is not signed with AMD's algorithm, RSASSA-PSS.",
    )
    ARK_ISSUER = (
        "ark-issuer",
        Authenticity.ROOT,
        "The root names an issuer other than itself.",
    )
    ARK_SIGNATURE = (
        "ark-signature",
        Authenticity.ROOT,
        "The root is not signed by its own key.",
    )
    ARK_UNTRUSTED = (
        "ark-untrusted",
        Authenticity.ANCHOR,
        "The root's key is not that of a trusted root.",
    )
    ARK_NOT_YET_VALID = (
        "ark-not-yet-valid",
        Authenticity.VALIDITY,
        "The root is not valid yet.",
    )
    ARK_EXPIRED = (
        "ark-expired",
        Authenticity.VALIDITY,
        "The root has expired.",
    )
    CHAIN_PRODUCT = (
        "chain-product",
        Authenticity.CHAIN_PRODUCT,
        "The certificates are for different products.",
    )
    # About the revocation list, if one is given or required.
    CRL_MISSING = (
        "crl-missing",
        Authenticity.REVOCATION,
        (
            "The policy requires a revocation list for this kind of leaf from a "
            "source other than the host, and none was supplied."
        ),
        NextStep.FIX_USAGE,
    )
    CRL_UNREADABLE = (
        "crl-unreadable",
        Authenticity.REVOCATION,
        "The revocation list is not a single X.509 v2 list.",
    )
    CRL_ISSUER = (
        "crl-issuer",
        Authenticity.REVOCATION,
        "The supplied ARK did not issue the revocation list, or is not allowed to.",
    )
    CRL_SIGNATURE_ALGORITHM = (
        "crl-signature-algorithm",
        Authenticity.REVOCATION,
        "The revocation list is not signed with AMD's algorithm, RSASSA-PSS.",
    )
    CRL_SIGNATURE = (
        "crl-signature",
        Authenticity.REVOCATION,
        "The ARK's key did not sign the revocation list.",
    )
    CRL_EXTENSIONS = (
        "crl-extensions",
        Authenticity.REVOCATION,
        "The revocation list has an unknown critical extension.",
    )
    CRL_NOT_YET_VALID = (
        "crl-not-yet-valid",
        Authenticity.REVOCATION,
        "The revocation list was issued after the time of verification.",
    )
    CRL_EXPIRED = (
        "crl-expired",
        Authenticity.REVOCATION,
        "The revocation list had expired at the time of verification.",
        NextStep.FIX_USAGE,
    )
    CRL_TOO_OLD = (
        "crl-too-old",
        Authenticity.REVOCATION,
        "The revocation list was fetched from the key server longer ago than the policy allows.",
        NextStep.FIX_USAGE,
    )
    CRL_OLDER = (
        "crl-older",
        Authenticity.REVOCATION,
        "The key server's revocation list is older than the one in the cache.",
    )
    ASK_REVOKED = (
        "ask-revoked",
        Authenticity.REVOCATION,
        "The ARK has revoked the ASK or ASVK.",
    )
    ARK_REVOKED = (
        "ark-revoked",
        Authenticity.REVOCATION,
        "The ARK has revoked itself.",
    )
    # About report and leaf together.
    PRODUCT_UNKNOWN = (
        "product-unknown",
        Authenticity.PRODUCT,
        "The report's CPUID fields match no product whose root key is pinned.",
    )
    PRODUCT_MISMATCH = (
        "product-mismatch",
        Authenticity.PRODUCT,
        "The report and the leaf are for different products.",
    )
    CHIP_ID_MASKED = (
        "chip-id-masked",
        Authenticity.CHIP_ID,
        "The report hides its chip ID, so no VCEK can be matched with it.",
    )
    CHIP_ID_MISMATCH = (
        "chip-id-mismatch",
        Authenticity.CHIP_ID,
        "The VCEK is for a different chip than the report's.",
    )
    REPORT_TCB = (
        "report-tcb",
        Authenticity.REPORTED_TCB,
        "A TCB in the report does not have the product's layout.",
    )
    TCB_MISMATCH = (
        "tcb-mismatch",
        Authenticity.REPORTED_TCB,
        "The leaf is for a TCB other than the reported one.",
    )
    REPORT_SIGNATURE = (
        "report-signature",
        Authenticity.REPORT_SIGNATURE,
        "The leaf's key did not sign the report.",
    )
    # About the report and the data that should be bound to it.
    RUNTIME_DATA_MISMATCH = (
        "runtime-data-mismatch",
        Authenticity.RUNTIME_DATA,
        "REPORT_DATA is not the digest of the runtime data that came with the report.",
    )
    RUNTIME_DATA_VMPL = (
        "runtime-data-vmpl",
        Authenticity.RUNTIME_DATA,
        (
            "The report that covers the runtime data was not requested at VMPL 0. At any other "
            "VMPL, the guest's own code could have chosen the data."
        ),
    )
    # About the policy's demands.
    POLICY_PRODUCT = (
        "policy-product",
        None,
        "The policy does not accept the product.",
    )
    POLICY_SIGNING_KEY = (
        "policy-signing-key",
        None,
        "The policy does not accept the kind of key that signed the report.",
    )
    POLICY_CHIP_ID = (
        "policy-chip-id",
        None,
        "The policy does not accept the chip.",
    )
    POLICY_CSP_ID = (
        "policy-csp-id",
        None,
        "The policy does not accept the VLEK's provider, or no VLEK signed the report.",
    )
    POLICY_REPORT_DATA = (
        "policy-report-data",
        None,
        "REPORT_DATA is not the value that the policy requires.",
    )
    POLICY_USER_DATA = (
        "policy-user-data",
        None,
        "The runtime data does not contain the user data that the policy requires, or the "
        "evidence has no runtime data.",
    )
    POLICY_MEASUREMENT = (
        "policy-measurement",
        None,
        "The policy does not accept the launch measurement.",
    )
    POLICY_HOST_DATA = (
        "policy-host-data",
        None,
        "HOST_DATA is not the value that the policy requires.",
    )
    POLICY_ID_KEY = (
        "policy-id-key",
        None,
        "The policy does not accept the ID key's digest.",
    )
    POLICY_AUTHOR_KEY = (
        "policy-author-key",
        None,
        "The policy does not accept the author key's digest.",
    )
    POLICY_FAMILY_ID = (
        "policy-family-id",
        None,
        "FAMILY_ID is not the value that the policy requires.",
    )
    POLICY_IMAGE_ID = (
        "policy-image-id",
        None,
        "IMAGE_ID is not the value that the policy requires.",
    )
    POLICY_GUEST_SVN = (
        "policy-guest-svn",
        None,
        "GUEST_SVN is lower than the policy requires.",
    )
    POLICY_VMPL = (
        "policy-vmpl",
        None,
        "The policy does not accept the VMPL at which the report was requested.",
    )
    POLICY_DEBUG = (
        "policy-debug",
        None,
        "The guest policy allows debugging.",
    )
    POLICY_MIGRATION_AGENT = (
        "policy-migration-agent",
        None,
        "The guest policy allows a migration agent.",
    )
    POLICY_GUEST_POLICY = (
        "policy-guest-policy",
        None,
        "A bit of the guest policy does not have the value that the policy requires.",
    )
    POLICY_ABI = (
        "policy-abi",
        None,
        "The guest policy accepts firmware with an older ABI than the policy requires.",
    )
    POLICY_PLATFORM_INFO = (
        "policy-platform-info",
        None,
        "A bit of PLATFORM_INFO does not have the value that the policy requires.",
    )
    POLICY_MITIGATIONS = (
        "policy-mitigations",
        None,
        "A mitigation that the policy requires is not in force.",
    )
    POLICY_FIRMWARE = (
        "policy-firmware",
        None,
        "The firmware version is lower than the policy requires.",
    )
    POLICY_COMMITTED_FIRMWARE = (
        "policy-committed-firmware",
        None,
        "The firmware can be rolled back to a lower version than the policy requires.",
    )
    POLICY_PROVISIONAL_FIRMWARE = (
        "policy-provisional-firmware",
        None,
        "The running firmware is not committed, so it can be rolled back.",
    )
    POLICY_REPORTED_TCB = (
        "policy-reported-tcb",
        None,
        "REPORTED_TCB is below the floor, or the policy has no floor for the product.",
    )
    POLICY_TCB_ABOVE_CURRENT = (
        "policy-tcb-above-current",
        None,
        "A component of REPORTED_TCB, or of the leaf's TCB, is above the current TCB "
        "(CURRENT_TCB).",
    )
    POLICY_CURRENT_TCB = (
        "policy-current-tcb",
        None,
        "CURRENT_TCB is below the floor, or the policy has no floor for the product.",
    )
    POLICY_COMMITTED_TCB = (
        "policy-committed-tcb",
        None,
        "COMMITTED_TCB is below the floor, or the policy has no floor for the product.",
    )
    POLICY_LAUNCH_TCB = (
        "policy-launch-tcb",
        None,
        "LAUNCH_TCB is below the floor, or the policy has no floor for the product.",
    )
    POLICY_FLOOR = (
        "policy-floor",
        None,
        (
            "REPORTED_TCB or CURRENT_TCB is below the floor for this processor, or "
            "the policy has no floor for it."
        ),
    )


# Reasons that can arise later: a certificate expires, or its issuer revokes it.
EXPIRED = frozenset(
    {ReasonCode.LEAF_EXPIRED, ReasonCode.ASK_EXPIRED, ReasonCode.ARK_EXPIRED},
)
REVOKED = frozenset({ReasonCode.ASK_REVOKED, ReasonCode.ARK_REVOKED})
NOT_YET_VALID = frozenset(
    {
        ReasonCode.LEAF_NOT_YET_VALID,
        ReasonCode.ASK_NOT_YET_VALID,
        ReasonCode.ARK_NOT_YET_VALID,
    }
)
# Reasons that depend only on the time. A wrong clock causes them too.
UNTIMELY = frozenset(
    {*EXPIRED, *NOT_YET_VALID, ReasonCode.CRL_EXPIRED, ReasonCode.CRL_NOT_YET_VALID}
)


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason to refuse a report or certificates: a stable code, and a message for people."""

    code: ReasonCode
    message: str

    @property
    def next_step(self) -> NextStep:
        """What the caller should do because of this reason."""
        return self.code.next_step

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"
