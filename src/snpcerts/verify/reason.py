# SPDX-License-Identifier: Apache-2.0
"""Every reason for which a report is refused: stable codes, one sentence each.

Programs and dashboards match on the code; it never changes its meaning. The
message beside it says what was found this time, and may change.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ReasonCode(enum.StrEnum):
    """A reason's code; ``description`` is its sentence in the documentation."""

    description: str

    # The default stands for look-ups by code, which come here in type checkers only.
    def __new__(cls, code: str, description: str = "") -> ReasonCode:
        member = str.__new__(cls, code)
        member._value_ = code
        member.description = description
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
        "The report says that no key signed it (MASK_CHIP_KEY is in force on the host).",
    )
    # Certificates at hand.
    VCEK_MISSING = "vcek-missing", "A VCEK signed the report and its certificate is not supplied."
    VLEK_MISSING = "vlek-missing", "A VLEK signed the report and its certificate is not supplied."
    ASK_MISSING = "ask-missing", "The intermediate certificate (ASK or ASVK) is not supplied."
    ARK_MISSING = "ark-missing", "The root certificate (ARK) is not supplied."
    VCEK_UNREADABLE = "vcek-unreadable", "The VCEK is not one X.509 v3 certificate."
    VLEK_UNREADABLE = "vlek-unreadable", "The VLEK is not one X.509 v3 certificate."
    ASK_UNREADABLE = "ask-unreadable", "The ASK or ASVK is not one X.509 v3 certificate."
    ARK_UNREADABLE = "ark-unreadable", "The ARK is not one X.509 v3 certificate."
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


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a report is refused: a stable code, and a message for people."""

    code: ReasonCode
    message: str

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"
