# SPDX-License-Identifier: Apache-2.0
"""Every reason for which certificates or a report are refused: stable codes, one sentence each.

Programs and dashboards match on the code; it never changes its meaning. The
message beside it says what was found this time, and may change. Each code names
the check that it fails.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class NextStep(enum.StrEnum):
    """What the caller does next about a reason."""

    REFUSE = "refuse"  # the evidence is bad or unwanted: the same call will refuse it again
    RETRY_LATER = "retry-later"  # something needed was not available
    FIX_USAGE = "fix-usage"  # the caller has not supplied what is needed


class Authenticity(enum.StrEnum):
    """The checks that make a report genuine; the value is the check's name."""

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
    """A reason's code.

    ``check`` is the check of authenticity that it fails; None for the policy's
    checks, which have the code's own name, and for what fails no check.
    ``description`` is its sentence in the documentation; ``next_step`` groups
    codes by what the caller does next.
    """

    check: Authenticity | None
    description: str
    next_step: NextStep

    # The defaults stand for look-ups by code, which come here in type checkers only.
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

    # The report by itself.
    REPORT_SIZE = (
        "report-size",
        Authenticity.REPORT_LAYOUT,
        "The report does not have 1184 bytes.",
    )
    REPORT_VERSION = (
        "report-version",
        Authenticity.REPORT_LAYOUT,
        "The report's version is not 2 to 5.",
    )
    REPORT_POLICY = (
        "report-policy",
        Authenticity.REPORT_LAYOUT,
        "The guest policy has bits no policy has.",
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
        "Bytes that are zero in every such report are not.",
    )
    REPORT_UNSIGNED = (
        "report-unsigned",
        Authenticity.REPORT_SIGNATURE,
        "The report says that no key signed it: the host masks the chip's key (MASK_CHIP_KEY), "
        "and no VLEK signed in its place.",
    )
    # Available certificates.
    VCEK_MISSING = (
        "vcek-missing",
        Authenticity.LEAF,
        "A VCEK signed the report and its certificate is not supplied.",
        NextStep.FIX_USAGE,
    )
    VLEK_MISSING = (
        "vlek-missing",
        Authenticity.LEAF,
        "A VLEK signed the report and its certificate is not supplied.",
        NextStep.FIX_USAGE,
    )
    ASK_MISSING = (
        "ask-missing",
        Authenticity.INTERMEDIATE,
        "The intermediate certificate (ASK or ASVK) is not supplied.",
        NextStep.FIX_USAGE,
    )
    ARK_MISSING = (
        "ark-missing",
        Authenticity.ROOT,
        "The root certificate (ARK) is not supplied.",
        NextStep.FIX_USAGE,
    )
    VCEK_UNREADABLE = (
        "vcek-unreadable",
        Authenticity.LEAF,
        "The VCEK is not one X.509 v3 certificate.",
    )
    VLEK_UNREADABLE = (
        "vlek-unreadable",
        Authenticity.LEAF,
        "The VLEK is not one X.509 v3 certificate.",
    )
    ASK_UNREADABLE = (
        "ask-unreadable",
        Authenticity.INTERMEDIATE,
        "The ASK or ASVK is not one X.509 v3 certificate.",
    )
    ARK_UNREADABLE = (
        "ark-unreadable",
        Authenticity.ROOT,
        "The ARK is not one X.509 v3 certificate.",
    )
    COLLATERAL_UNAVAILABLE = (
        "collateral-unavailable",
        None,
        "A certificate or revocation list is needed, and a source of it could not be reached.",
        NextStep.RETRY_LATER,
    )
    COLLATERAL_NOT_FOUND = (
        "collateral-not-found",
        None,
        "What is needed is nowhere, and a source said so (key servers have, of valid chips).",
        NextStep.FIX_USAGE,
    )
    # The leaf: VCEK or VLEK.
    LEAF_PROFILE = (
        "leaf-profile",
        Authenticity.LEAF,
        "An AMD extension of the leaf is missing, malformed, out of range or out of place.",
    )
    LEAF_KEY = (
        "leaf-key",
        Authenticity.LEAF,
        "The leaf's key is not on the curve P-384.",
    )
    LEAF_KIND = (
        "leaf-kind",
        Authenticity.LEAF,
        "The certificate is not of the kind that signed the report.",
    )
    LEAF_EXTENSIONS = (
        "leaf-extensions",
        Authenticity.LEAF,
        "The leaf has an unknown critical extension.",
    )
    LEAF_SIGNATURE_ALGORITHM = (
        "leaf-signature-algorithm",
        Authenticity.LEAF,
        "The leaf is not signed with RSASSA-PSS as AMD signs.",
    )
    LEAF_ISSUER = (
        "leaf-issuer",
        Authenticity.LEAF,
        "The leaf names another issuer than the ASK or ASVK supplied.",
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
        "The leaf is not valid any more.",
    )
    # The intermediate: ASK or ASVK.
    ASK_NAME = (
        "ask-name",
        Authenticity.INTERMEDIATE,
        "The intermediate's name is not that of the ASK or ASVK needed.",
    )
    ASK_KEY = (
        "ask-key",
        Authenticity.INTERMEDIATE,
        "The intermediate's key is not RSA of at least 4096 bits.",
    )
    ASK_CA = (
        "ask-ca",
        Authenticity.INTERMEDIATE,
        "The intermediate may not issue certificates.",
    )
    ASK_EXTENSIONS = (
        "ask-extensions",
        Authenticity.INTERMEDIATE,
        "The intermediate has an unknown critical extension.",
    )
    ASK_SIGNATURE_ALGORITHM = (
        "ask-signature-algorithm",
        Authenticity.INTERMEDIATE,
        "The intermediate is not signed with RSASSA-PSS as AMD signs.",
    )
    ASK_ISSUER = (
        "ask-issuer",
        Authenticity.INTERMEDIATE,
        "The intermediate names another issuer than the ARK supplied.",
    )
    ASK_SIGNATURE = (
        "ask-signature",
        Authenticity.INTERMEDIATE,
        "The ARK's key did not sign the intermediate.",
    )
    ASK_NOT_YET_VALID = (
        "ask-not-yet-valid",
        Authenticity.VALIDITY,
        "The intermediate is not valid yet.",
    )
    ASK_EXPIRED = (
        "ask-expired",
        Authenticity.VALIDITY,
        "The intermediate is not valid any more.",
    )
    # The root: ARK.
    ARK_NAME = (
        "ark-name",
        Authenticity.ROOT,
        "The root's name is not that of an ARK.",
    )
    ARK_KEY = (
        "ark-key",
        Authenticity.ROOT,
        "The root's key is not RSA of at least 4096 bits.",
    )
    ARK_CA = (
        "ark-ca",
        Authenticity.ROOT,
        "The root may not issue certificates.",
    )
    ARK_EXTENSIONS = (
        "ark-extensions",
        Authenticity.ROOT,
        "The root has an unknown critical extension.",
    )
    ARK_SIGNATURE_ALGORITHM = (
        "ark-signature-algorithm",
        Authenticity.ROOT,
        "The root is not signed with RSASSA-PSS as AMD signs.",
    )
    ARK_ISSUER = (
        "ark-issuer",
        Authenticity.ROOT,
        "The root names another issuer than itself.",
    )
    ARK_SIGNATURE = (
        "ark-signature",
        Authenticity.ROOT,
        "The root's own key did not sign it.",
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
        "The root is not valid any more.",
    )
    CHAIN_PRODUCT = (
        "chain-product",
        Authenticity.CHAIN_PRODUCT,
        "The certificates are of different products.",
    )
    # The revocation list, where one is given or required.
    CRL_MISSING = (
        "crl-missing",
        Authenticity.REVOCATION,
        "A revocation list of the relying party's own is required, for that kind of leaf, "
        "and not supplied.",
        NextStep.FIX_USAGE,
    )
    CRL_UNREADABLE = (
        "crl-unreadable",
        Authenticity.REVOCATION,
        "The revocation list is not one X.509 v2 list.",
    )
    CRL_ISSUER = (
        "crl-issuer",
        Authenticity.REVOCATION,
        "The revocation list is not of the ARK supplied, or may not be.",
    )
    CRL_SIGNATURE_ALGORITHM = (
        "crl-signature-algorithm",
        Authenticity.REVOCATION,
        "The revocation list is not signed with RSASSA-PSS as AMD signs.",
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
        "The revocation list is from after that time.",
    )
    CRL_EXPIRED = (
        "crl-expired",
        Authenticity.REVOCATION,
        "The revocation list should have been replaced by that time.",
        NextStep.FIX_USAGE,
    )
    CRL_TOO_OLD = (
        "crl-too-old",
        Authenticity.REVOCATION,
        "The revocation list came from the key server longer ago than the policy allows.",
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
    # Report and leaf together.
    PRODUCT_UNKNOWN = (
        "product-unknown",
        Authenticity.PRODUCT,
        "The report's CPUID fields are of no known product.",
    )
    PRODUCT_MISMATCH = (
        "product-mismatch",
        Authenticity.PRODUCT,
        "Report and leaf are of different products.",
    )
    CHIP_ID_MASKED = (
        "chip-id-masked",
        Authenticity.CHIP_ID,
        "The report hides its chip ID, so no VCEK can be bound to it.",
    )
    CHIP_ID_MISMATCH = (
        "chip-id-mismatch",
        Authenticity.CHIP_ID,
        "The VCEK is of another chip than the report's.",
    )
    REPORT_TCB = (
        "report-tcb",
        Authenticity.REPORTED_TCB,
        "A TCB in the report does not have the product's layout.",
    )
    TCB_MISMATCH = (
        "tcb-mismatch",
        Authenticity.REPORTED_TCB,
        "The leaf is for another TCB than the one reported.",
    )
    REPORT_SIGNATURE = (
        "report-signature",
        Authenticity.REPORT_SIGNATURE,
        "The leaf's key did not sign the report.",
    )
    # The report and what is said to be bound to it.
    RUNTIME_DATA_MISMATCH = (
        "runtime-data-mismatch",
        Authenticity.RUNTIME_DATA,
        "REPORT_DATA is not the digest of the runtime data that came with the report.",
    )
    RUNTIME_DATA_VMPL = (
        "runtime-data-vmpl",
        Authenticity.RUNTIME_DATA,
        "The report that binds the runtime data was asked for below VMPL 0, where the guest "
        "chooses what it binds.",
    )
    # What the policy asks for.
    POLICY_SIGNING_KEY = (
        "policy-signing-key",
        None,
        "Another kind of key signed than is wanted.",
    )
    POLICY_CHIP_ID = (
        "policy-chip-id",
        None,
        "The chip is none of those wanted.",
    )
    POLICY_CSP_ID = (
        "policy-csp-id",
        None,
        "The VLEK is of no provider wanted, or a VCEK signed.",
    )
    POLICY_REPORT_DATA = (
        "policy-report-data",
        None,
        "REPORT_DATA is not what is wanted.",
    )
    POLICY_USER_DATA = (
        "policy-user-data",
        None,
        "The runtime data does not hold the user data that is wanted, or there is none.",
    )
    POLICY_MEASUREMENT = (
        "policy-measurement",
        None,
        "The launch measurement is none of those wanted.",
    )
    POLICY_HOST_DATA = (
        "policy-host-data",
        None,
        "HOST_DATA is not what is wanted.",
    )
    POLICY_ID_KEY = (
        "policy-id-key",
        None,
        "The ID key's digest is none of those wanted.",
    )
    POLICY_AUTHOR_KEY = (
        "policy-author-key",
        None,
        "The author key's digest is none of those wanted.",
    )
    POLICY_FAMILY_ID = (
        "policy-family-id",
        None,
        "FAMILY_ID is not what is wanted.",
    )
    POLICY_IMAGE_ID = (
        "policy-image-id",
        None,
        "IMAGE_ID is not what is wanted.",
    )
    POLICY_GUEST_SVN = (
        "policy-guest-svn",
        None,
        "GUEST_SVN is lower than is wanted.",
    )
    POLICY_VMPL = (
        "policy-vmpl",
        None,
        "The report was asked for at another VMPL than is wanted.",
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
        "A bit of the guest policy is not as wanted.",
    )
    POLICY_ABI = (
        "policy-abi",
        None,
        "The guest policy accepts firmware of an older ABI than is wanted.",
    )
    POLICY_PLATFORM_INFO = (
        "policy-platform-info",
        None,
        "A bit of PLATFORM_INFO is not as wanted.",
    )
    POLICY_MITIGATIONS = (
        "policy-mitigations",
        None,
        "A mitigation that is wanted is not in force.",
    )
    POLICY_FIRMWARE = (
        "policy-firmware",
        None,
        "The firmware is older than is wanted.",
    )
    POLICY_COMMITTED_FIRMWARE = (
        "policy-committed-firmware",
        None,
        "The firmware can be rolled back to an older version than is wanted.",
    )
    POLICY_PROVISIONAL_FIRMWARE = (
        "policy-provisional-firmware",
        None,
        "The firmware that runs is not committed: it can be rolled back.",
    )
    POLICY_REPORTED_TCB = (
        "policy-reported-tcb",
        None,
        "REPORTED_TCB is below the floor, or the product has none.",
    )
    POLICY_TCB_ABOVE_CURRENT = (
        "policy-tcb-above-current",
        None,
        "A component of REPORTED_TCB, or of the leaf's TCB, is above what runs (CURRENT_TCB).",
    )
    POLICY_CURRENT_TCB = (
        "policy-current-tcb",
        None,
        "CURRENT_TCB is below the floor, or the product has none.",
    )
    POLICY_COMMITTED_TCB = (
        "policy-committed-tcb",
        None,
        "COMMITTED_TCB is below the floor, or the product has none.",
    )
    POLICY_LAUNCH_TCB = (
        "policy-launch-tcb",
        None,
        "LAUNCH_TCB is below the floor, or the product has none.",
    )


# What was right once: a certificate's time is over, or its issuer has withdrawn it.
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
# What depends on the clock alone; a wrong clock causes it too.
UNTIMELY = frozenset(
    {*EXPIRED, *NOT_YET_VALID, ReasonCode.CRL_EXPIRED, ReasonCode.CRL_NOT_YET_VALID}
)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a report is refused: a stable code, and a message for people."""

    code: ReasonCode
    message: str

    @property
    def next_step(self) -> NextStep:
        """What the caller does next about it."""
        return self.code.next_step

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"
