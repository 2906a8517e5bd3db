# SPDX-License-Identifier: Apache-2.0
"""Turns verdicts into trustworthiness vectors (AR4SI), which attestation results carry.

A vector has a number for each claim: numbers from 2 to 31 affirm the claim, 32 to 95 warn, 96 to
127 contraindicate, and 0 means no claim. snpcerts makes five of AR4SI's eight claims. It affirms no
claim about a report that is not genuine. If it refuses a report, at least one claim is not
affirmed.

Source: draft-ietf-rats-ar4si section 2.3.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from snpcerts.abi.report import Report
from snpcerts.endorsement.reason import NextStep, ReasonCode
from snpcerts.verify.bits import GUEST_POLICY_BITS
from snpcerts.verify.verdict import Status, Verdict
from snpcerts.verify.verdict_check import CheckState


class TrustClaim(enum.StrEnum):
    """The AR4SI claims that snpcerts makes."""

    INSTANCE_IDENTITY = "instance-identity"  # which chip or provider
    CONFIGURATION = "configuration"  # guest policy and platform settings
    EXECUTABLES = "executables"  # what was launched
    HARDWARE = "hardware"  # the processor and its firmware
    RUNTIME_OPAQUE = "runtime-opaque"  # whether others can read the guest's memory


class TrustTier(enum.StrEnum):
    """The trust tier of a whole vector."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


NO_CLAIM: Final = 0
UNEXPECTED: Final = 1  # the evidence cannot be read
RECOGNIZED_INSTANCE: Final = 2
APPROVED_CONFIGURATION: Final = 2
SAFE_CONFIGURATION: Final = 3
APPROVED_BOOT: Final = 3
GENUINE_HARDWARE: Final = 2
ENCRYPTED_MEMORY: Final = 2
CONTRAINDICATED: Final = 96
UNRECOGNIZED: Final = 97
CRYPTO_FAILED: Final = 99

Vector = Mapping[TrustClaim, int]


def _all(value: int) -> Vector:
    return dict.fromkeys(TrustClaim, value)


_CRYPTO_FAILED: Final = _all(CRYPTO_FAILED)
_UNEXPECTED: Final = _all(UNEXPECTED)
_UNKNOWN_CHIP: Final = {TrustClaim.INSTANCE_IDENTITY: UNRECOGNIZED}
_BAD_HARDWARE: Final = {TrustClaim.HARDWARE: CONTRAINDICATED}
_BAD_CONFIGURATION: Final = {TrustClaim.CONFIGURATION: CONTRAINDICATED}
_BAD_EXECUTABLES: Final = {TrustClaim.EXECUTABLES: CONTRAINDICATED}
_READABLE_MEMORY: Final = {
    TrustClaim.CONFIGURATION: CONTRAINDICATED,
    TrustClaim.RUNTIME_OPAQUE: CONTRAINDICATED,
}

# The claims that a reason sets, and their values. For reasons that are not listed, see
# :func:`claims_of`.
BY_CODE: Final[Mapping[ReasonCode, Vector]] = {
    ReasonCode.REPORT_SIZE: _UNEXPECTED,
    ReasonCode.REPORT_VERSION: _UNEXPECTED,
    ReasonCode.REPORT_POLICY: _UNEXPECTED,
    ReasonCode.REPORT_SIGNATURE_ALGORITHM: _UNEXPECTED,
    ReasonCode.REPORT_FLAGS: _UNEXPECTED,
    ReasonCode.REPORT_SIGNING_KEY: _UNEXPECTED,
    ReasonCode.REPORT_RESERVED: _UNEXPECTED,
    ReasonCode.REPORT_TCB: _UNEXPECTED,
    ReasonCode.ARK_UNTRUSTED: {TrustClaim.HARDWARE: UNRECOGNIZED},
    ReasonCode.PRODUCT_UNKNOWN: {TrustClaim.HARDWARE: UNRECOGNIZED},
    ReasonCode.POLICY_PRODUCT: {TrustClaim.HARDWARE: UNRECOGNIZED},
    ReasonCode.ASK_REVOKED: _BAD_HARDWARE,
    ReasonCode.ARK_REVOKED: _BAD_HARDWARE,
    ReasonCode.CHIP_ID_MASKED: _UNKNOWN_CHIP,
    ReasonCode.CHIP_ID_MISMATCH: _UNKNOWN_CHIP,
    ReasonCode.RUNTIME_DATA_VMPL: _BAD_CONFIGURATION,
    ReasonCode.POLICY_SIGNING_KEY: _UNKNOWN_CHIP,
    ReasonCode.POLICY_CHIP_ID: _UNKNOWN_CHIP,
    ReasonCode.POLICY_CSP_ID: _UNKNOWN_CHIP,
    # Evidence for another challenge proves nothing about this guest.
    ReasonCode.POLICY_REPORT_DATA: _CRYPTO_FAILED,
    ReasonCode.POLICY_USER_DATA: _CRYPTO_FAILED,
    ReasonCode.POLICY_MEASUREMENT: _BAD_EXECUTABLES,
    ReasonCode.POLICY_ID_KEY: _BAD_EXECUTABLES,
    ReasonCode.POLICY_AUTHOR_KEY: _BAD_EXECUTABLES,
    ReasonCode.POLICY_FAMILY_ID: _BAD_EXECUTABLES,
    ReasonCode.POLICY_IMAGE_ID: _BAD_EXECUTABLES,
    ReasonCode.POLICY_GUEST_SVN: _BAD_EXECUTABLES,
    ReasonCode.POLICY_HOST_DATA: _BAD_CONFIGURATION,
    ReasonCode.POLICY_VMPL: _BAD_CONFIGURATION,
    ReasonCode.POLICY_DEBUG: _READABLE_MEMORY,
    ReasonCode.POLICY_MIGRATION_AGENT: _READABLE_MEMORY,
    ReasonCode.POLICY_GUEST_POLICY: _BAD_CONFIGURATION,
    ReasonCode.POLICY_ABI: _BAD_CONFIGURATION,
    ReasonCode.POLICY_PLATFORM_INFO: _BAD_CONFIGURATION,
    ReasonCode.POLICY_MITIGATIONS: _BAD_HARDWARE,
    ReasonCode.POLICY_FIRMWARE: _BAD_HARDWARE,
    ReasonCode.POLICY_COMMITTED_FIRMWARE: _BAD_HARDWARE,
    ReasonCode.POLICY_PROVISIONAL_FIRMWARE: _BAD_HARDWARE,
    ReasonCode.POLICY_REPORTED_TCB: _BAD_HARDWARE,
    ReasonCode.POLICY_TCB_ABOVE_CURRENT: _BAD_HARDWARE,
    ReasonCode.POLICY_CURRENT_TCB: _BAD_HARDWARE,
    ReasonCode.POLICY_COMMITTED_TCB: _BAD_HARDWARE,
    ReasonCode.POLICY_LAUNCH_TCB: _BAD_HARDWARE,
    ReasonCode.POLICY_FLOOR: _BAD_HARDWARE,
}


def claims_of(code: ReasonCode) -> Vector:
    """Return the claims that a reason sets, and their values.

    A reason about authenticity removes all other claims. A policy's reason keeps the claims that it
    does not set.
    """
    found = BY_CODE.get(code)
    if found is not None:
        return found
    if code.next_step is not NextStep.REFUSE:
        return _all(NO_CLAIM)
    return _CRYPTO_FAILED


def is_of_policy(code: ReasonCode) -> bool:
    """Return whether a reason with this code is about a policy's demand on a genuine report."""
    return code.check is None and code.next_step is NextStep.REFUSE


def trust_vector(verdict: Verdict) -> dict[TrustClaim, int]:
    """Return the trustworthiness vector of a verdict. Claims whose value is 0 are left out."""
    genuine = all(is_of_policy(reason.code) for reason in verdict.reasons)
    vector = _affirmed(verdict, verdict.report) if genuine and verdict.report is not None else {}
    for reason in verdict.reasons:
        for claim, value in claims_of(reason.code).items():
            vector[claim] = max(vector.get(claim, NO_CLAIM), value)
    return {claim: vector[claim] for claim in TrustClaim if vector.get(claim)}


def tier(verdict: Verdict, vector: Vector) -> TrustTier:
    """Return the trust tier of a verdict and its vector: contraindicated if refused."""
    if verdict.next_step is NextStep.REFUSE:
        return TrustTier.CONTRAINDICATED
    if verdict.status is not Status.VERIFIED:
        return TrustTier.NONE
    return max((_tier(value) for value in vector.values()), key=_ORDER.index)


_ORDER: Final = tuple(TrustTier)


def _tier(value: int) -> TrustTier:
    if value >= CONTRAINDICATED:
        return TrustTier.CONTRAINDICATED
    if value >= 32:
        return TrustTier.WARNING
    return TrustTier.AFFIRMING if value >= 2 else TrustTier.NONE


# If a check of one of these demands passes, the chip or the provider is recognised.
_OF_INSTANCE: Final = (ReasonCode.POLICY_CHIP_ID, ReasonCode.POLICY_CSP_ID)
# If a check of one of these demands passes, the configuration is approved.
_OF_CONFIGURATION: Final = (ReasonCode.POLICY_GUEST_POLICY, ReasonCode.POLICY_PLATFORM_INFO)


def _affirmed(verdict: Verdict, report: Report) -> dict[TrustClaim, int]:
    """Return the claims about a genuine report that apply before any reason is taken into
    account.
    """
    states = {check.name: check.state for check in verdict.checks}

    def passed(*codes: ReasonCode) -> bool:
        return any(states.get(code.value) is CheckState.PASSED for code in codes)

    vector = {TrustClaim.HARDWARE: GENUINE_HARDWARE}
    if passed(*_OF_INSTANCE):
        vector[TrustClaim.INSTANCE_IDENTITY] = RECOGNIZED_INSTANCE
    if passed(ReasonCode.POLICY_MEASUREMENT):
        vector[TrustClaim.EXECUTABLES] = APPROVED_BOOT
    if _may_be_read(report):
        return vector | _READABLE_MEMORY
    vector[TrustClaim.RUNTIME_OPAQUE] = ENCRYPTED_MEMORY
    vector[TrustClaim.CONFIGURATION] = (
        APPROVED_CONFIGURATION if passed(*_OF_CONFIGURATION) else SAFE_CONFIGURATION
    )
    return vector


def _may_be_read(report: Report) -> bool:
    """Return whether a debugger or a migration agent can read the guest's memory."""
    return any(GUEST_POLICY_BITS[name].of(report.fields.policy) for name in ("debug", "migrate_ma"))
