# SPDX-License-Identifier: Apache-2.0
"""Every reason for which a report is refused: stable codes, one sentence each.

Programs and dashboards match on the code; it never changes its meaning. The
message beside it says what was found this time, and may change.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class NextStep(enum.StrEnum):
    """What the caller does next about a reason."""

    REFUSE = "refuse"  # the evidence is bad or unwanted: asking again is no use
    RETRY_LATER = "retry-later"  # what is needed could not be had just now
    FIX_USAGE = "fix-usage"  # the caller has not supplied what is needed


class ReasonCode(enum.StrEnum):
    """A reason's code.

    ``description`` is its sentence in the documentation; ``next_step`` groups
    codes by what the caller does next.
    """

    description: str
    next_step: NextStep

    # The defaults stand for look-ups by code, which come here in type checkers only.
    def __new__(
        cls, code: str, description: str = "", next_step: NextStep = NextStep.REFUSE
    ) -> ReasonCode:
        member = str.__new__(cls, code)
        member._value_ = code
        member.description = description
        member.next_step = next_step
        return member

    # The report by itself.
    REPORT_SIZE = "report-size", "The report does not have 1184 bytes."
    REPORT_VERSION = "report-version", "The report's version is not 2 to 5."
    REPORT_POLICY = "report-policy", "The guest policy has bits no policy has."
    REPORT_SIGNATURE_ALGORITHM = (
        "report-signature-algorithm",
        "The report does not name ECDSA P-384 with SHA-384 as its signature algorithm.",
    )
    REPORT_FLAGS = "report-flags", "Reserved bits of the flags word are set."
    REPORT_SIGNING_KEY = "report-signing-key", "The report names a reserved signing key."
    REPORT_RESERVED = "report-reserved", "Bytes that are zero in every such report are not."
    REPORT_UNSIGNED = (
        "report-unsigned",
        "The report says that no key signed it: the host masks the chip's key (MASK_CHIP_KEY), "
        "and no VLEK signed in its place.",
    )
    # Certificates at hand.
    VCEK_MISSING = (
        "vcek-missing",
        "A VCEK signed the report and its certificate is not supplied.",
        NextStep.FIX_USAGE,
    )
    VLEK_MISSING = (
        "vlek-missing",
        "A VLEK signed the report and its certificate is not supplied.",
        NextStep.FIX_USAGE,
    )
    ASK_MISSING = (
        "ask-missing",
        "The intermediate certificate (ASK or ASVK) is not supplied.",
        NextStep.FIX_USAGE,
    )
    ARK_MISSING = (
        "ark-missing",
        "The root certificate (ARK) is not supplied.",
        NextStep.FIX_USAGE,
    )
    VCEK_UNREADABLE = "vcek-unreadable", "The VCEK is not one X.509 v3 certificate."
    VLEK_UNREADABLE = "vlek-unreadable", "The VLEK is not one X.509 v3 certificate."
    ASK_UNREADABLE = "ask-unreadable", "The ASK or ASVK is not one X.509 v3 certificate."
    ARK_UNREADABLE = "ark-unreadable", "The ARK is not one X.509 v3 certificate."
    COLLATERAL_UNAVAILABLE = (
        "collateral-unavailable",
        "A certificate or revocation list is needed, and a source of it could not be reached.",
        NextStep.RETRY_LATER,
    )
    COLLATERAL_NOT_FOUND = (
        "collateral-not-found",
        "What is needed is nowhere, and a source said so (key servers have, of valid chips).",
        NextStep.FIX_USAGE,
    )
    # The leaf: VCEK or VLEK.
    LEAF_PROFILE = (
        "leaf-profile",
        "An AMD extension of the leaf is missing, malformed, out of range or out of place.",
    )
    LEAF_KEY = "leaf-key", "The leaf's key is not on the curve P-384."
    LEAF_KIND = "leaf-kind", "The certificate is not of the kind that signed the report."
    LEAF_EXTENSIONS = "leaf-extensions", "The leaf has an unknown critical extension."
    LEAF_SIGNATURE_ALGORITHM = (
        "leaf-signature-algorithm",
        "The leaf is not signed with RSASSA-PSS as AMD signs.",
    )
    LEAF_ISSUER = "leaf-issuer", "The leaf names another issuer than the ASK or ASVK supplied."
    LEAF_SIGNATURE = "leaf-signature", "The key of the ASK or ASVK did not sign the leaf."
    LEAF_NOT_YET_VALID = "leaf-not-yet-valid", "The leaf is not valid yet."
    LEAF_EXPIRED = "leaf-expired", "The leaf is not valid any more."
    # The intermediate: ASK or ASVK.
    ASK_NAME = "ask-name", "The intermediate's name is not that of the ASK or ASVK needed."
    ASK_KEY = "ask-key", "The intermediate's key is not RSA of at least 4096 bits."
    ASK_CA = "ask-ca", "The intermediate may not issue certificates."
    ASK_EXTENSIONS = "ask-extensions", "The intermediate has an unknown critical extension."
    ASK_SIGNATURE_ALGORITHM = (
        "ask-signature-algorithm",
        "The intermediate is not signed with RSASSA-PSS as AMD signs.",
    )
    ASK_ISSUER = "ask-issuer", "The intermediate names another issuer than the ARK supplied."
    ASK_SIGNATURE = "ask-signature", "The ARK's key did not sign the intermediate."
    ASK_NOT_YET_VALID = "ask-not-yet-valid", "The intermediate is not valid yet."
    ASK_EXPIRED = "ask-expired", "The intermediate is not valid any more."
    # The root: ARK.
    ARK_NAME = "ark-name", "The root's name is not that of an ARK."
    ARK_KEY = "ark-key", "The root's key is not RSA of at least 4096 bits."
    ARK_CA = "ark-ca", "The root may not issue certificates."
    ARK_EXTENSIONS = "ark-extensions", "The root has an unknown critical extension."
    ARK_SIGNATURE_ALGORITHM = (
        "ark-signature-algorithm",
        "The root is not signed with RSASSA-PSS as AMD signs.",
    )
    ARK_ISSUER = "ark-issuer", "The root names another issuer than itself."
    ARK_SIGNATURE = "ark-signature", "The root's own key did not sign it."
    ARK_UNTRUSTED = "ark-untrusted", "The root's key is not that of a trusted root."
    ARK_NOT_YET_VALID = "ark-not-yet-valid", "The root is not valid yet."
    ARK_EXPIRED = "ark-expired", "The root is not valid any more."
    CHAIN_PRODUCT = "chain-product", "The certificates are of different products."
    # The revocation list, where one is given or required.
    CRL_MISSING = (
        "crl-missing",
        "A revocation list of the relying party's own is required, for that kind of leaf, "
        "and not supplied.",
        NextStep.FIX_USAGE,
    )
    CRL_UNREADABLE = "crl-unreadable", "The revocation list is not one X.509 v2 list."
    CRL_ISSUER = "crl-issuer", "The revocation list is not of the ARK supplied, or may not be."
    CRL_SIGNATURE_ALGORITHM = (
        "crl-signature-algorithm",
        "The revocation list is not signed with RSASSA-PSS as AMD signs.",
    )
    CRL_SIGNATURE = "crl-signature", "The ARK's key did not sign the revocation list."
    CRL_EXTENSIONS = "crl-extensions", "The revocation list has an unknown critical extension."
    CRL_NOT_YET_VALID = "crl-not-yet-valid", "The revocation list is from after that time."
    CRL_EXPIRED = (
        "crl-expired",
        "The revocation list should have been replaced by that time.",
        NextStep.FIX_USAGE,
    )
    CRL_TOO_OLD = (
        "crl-too-old",
        "The revocation list came from the key server longer ago than the policy allows.",
        NextStep.FIX_USAGE,
    )
    ASK_REVOKED = "ask-revoked", "The ARK has revoked the ASK or ASVK."
    ARK_REVOKED = "ark-revoked", "The ARK has revoked itself."
    # Report and leaf together.
    PRODUCT_UNKNOWN = "product-unknown", "The report's CPUID fields are of no known product."
    PRODUCT_MISMATCH = "product-mismatch", "Report and leaf are of different products."
    CHIP_ID_MASKED = (
        "chip-id-masked",
        "The report hides its chip ID, so no VCEK can be bound to it.",
    )
    CHIP_ID_MISMATCH = "chip-id-mismatch", "The VCEK is of another chip than the report's."
    REPORT_TCB = "report-tcb", "A TCB in the report does not have the product's layout."
    TCB_MISMATCH = "tcb-mismatch", "The leaf is for another TCB than the one reported."
    REPORT_SIGNATURE = "report-signature", "The leaf's key did not sign the report."
    # The report and what is said to be bound to it.
    RUNTIME_DATA_MISMATCH = (
        "runtime-data-mismatch",
        "REPORT_DATA is not the digest of the runtime data that came with the report.",
    )
    RUNTIME_DATA_VMPL = (
        "runtime-data-vmpl",
        "The report that binds the runtime data was asked for below VMPL 0, where the guest "
        "chooses what it binds.",
    )
    # What the policy asks for.
    POLICY_SIGNING_KEY = "policy-signing-key", "Another kind of key signed than is wanted."
    POLICY_CHIP_ID = "policy-chip-id", "The chip is none of those wanted."
    POLICY_CSP_ID = "policy-csp-id", "The VLEK is of no provider wanted, or a VCEK signed."
    POLICY_REPORT_DATA = "policy-report-data", "REPORT_DATA is not what is wanted."
    POLICY_USER_DATA = (
        "policy-user-data",
        "The runtime data does not hold the user data that is wanted, or there is none.",
    )
    POLICY_MEASUREMENT = "policy-measurement", "The launch measurement is none of those wanted."
    POLICY_HOST_DATA = "policy-host-data", "HOST_DATA is not what is wanted."
    POLICY_ID_KEY = "policy-id-key", "The ID key's digest is none of those wanted."
    POLICY_AUTHOR_KEY = "policy-author-key", "The author key's digest is none of those wanted."
    POLICY_FAMILY_ID = "policy-family-id", "FAMILY_ID is not what is wanted."
    POLICY_IMAGE_ID = "policy-image-id", "IMAGE_ID is not what is wanted."
    POLICY_GUEST_SVN = "policy-guest-svn", "GUEST_SVN is lower than is wanted."
    POLICY_VMPL = "policy-vmpl", "The report was asked for at another VMPL than is wanted."
    POLICY_DEBUG = "policy-debug", "The guest policy allows debugging."
    POLICY_MIGRATION_AGENT = (
        "policy-migration-agent",
        "The guest policy allows a migration agent.",
    )
    POLICY_GUEST_POLICY = "policy-guest-policy", "A bit of the guest policy is not as wanted."
    POLICY_ABI = "policy-abi", "The guest policy accepts firmware of an older ABI than is wanted."
    POLICY_PLATFORM_INFO = "policy-platform-info", "A bit of PLATFORM_INFO is not as wanted."
    POLICY_MITIGATIONS = "policy-mitigations", "A mitigation that is wanted is not in force."
    POLICY_FIRMWARE = "policy-firmware", "The firmware is older than is wanted."
    POLICY_COMMITTED_FIRMWARE = (
        "policy-committed-firmware",
        "The firmware can be rolled back to an older version than is wanted.",
    )
    POLICY_PROVISIONAL_FIRMWARE = (
        "policy-provisional-firmware",
        "The firmware that runs is not committed: it can be rolled back.",
    )
    POLICY_REPORTED_TCB = (
        "policy-reported-tcb",
        "REPORTED_TCB is below the floor, or the product has none.",
    )
    POLICY_TCB_ABOVE_CURRENT = (
        "policy-tcb-above-current",
        "A component of REPORTED_TCB, or of the leaf's TCB, is above what runs (CURRENT_TCB).",
    )
    POLICY_CURRENT_TCB = (
        "policy-current-tcb",
        "CURRENT_TCB is below the floor, or the product has none.",
    )
    POLICY_COMMITTED_TCB = (
        "policy-committed-tcb",
        "COMMITTED_TCB is below the floor, or the product has none.",
    )
    POLICY_LAUNCH_TCB = (
        "policy-launch-tcb",
        "LAUNCH_TCB is below the floor, or the product has none.",
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
