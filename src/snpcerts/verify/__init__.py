# SPDX-License-Identifier: Apache-2.0
"""Judges a report with certificates at a given time, and returns a verdict with reasons. No I/O.

``judging`` has :func:`verify`; ``sources`` has :func:`verify_with`, which fetches missing
certificates; ``bulk`` verifies many reports on several cores. The checks: ``choosing`` selects the
chain; ``report_check`` checks the report and its signature, ``revocation`` the revocation lists,
and ``policy_check`` the relying party's demands. ``collateral`` holds certificates and lists that
are not verified yet. The result is a ``verdict`` with an outcome for each ``verdict_check``.

Evidence: ``evidence`` reads every format. ``attestation_proto``, ``json_evidence``, ``hcl``,
``message_pack`` and ``scale`` decode the formats that need a codec; ``tsm_report`` writes evidence
as a tsm-report.

Demands: ``policy`` has the fields, ``policy_file`` reads them from TOML, ``bulletins`` derives them
from AMD's security bulletins, and ``reference_values`` writes them for other verifiers.

Output: ``explain`` describes a report, ``bits`` names the report's bits, and ``attacks`` names the
attacks to which a guest may be open if its report fails a demand. ``ear`` writes a verdict as a
signed token, with the claims of ``trust_vector``. Imports ``endorsement`` and ``abi``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snpcerts.endorsement.reason import NextStep as NextStep
    from snpcerts.endorsement.reason import Reason as Reason
    from snpcerts.endorsement.reason import ReasonCode as ReasonCode
    from snpcerts.verify.bulk import verify_many as verify_many
    from snpcerts.verify.choosing import Part as Part
    from snpcerts.verify.collateral import Collateral as Collateral
    from snpcerts.verify.collateral import SuppliedCrl as SuppliedCrl
    from snpcerts.verify.collateral import Supplier as Supplier
    from snpcerts.verify.ear import EarSigner as EarSigner
    from snpcerts.verify.ear import ear_claims as ear_claims
    from snpcerts.verify.evidence import Evidence as Evidence
    from snpcerts.verify.evidence import RuntimeData as RuntimeData
    from snpcerts.verify.evidence import Shape as Shape
    from snpcerts.verify.judging import verify as verify
    from snpcerts.verify.policy import GuestPolicyBits as GuestPolicyBits
    from snpcerts.verify.policy import PlatformInfoBits as PlatformInfoBits
    from snpcerts.verify.policy import Policy as Policy
    from snpcerts.verify.policy import ProcessorFloor as ProcessorFloor
    from snpcerts.verify.policy import Revocation as Revocation
    from snpcerts.verify.policy import TcbFloor as TcbFloor
    from snpcerts.verify.policy import WithoutCpuid as WithoutCpuid
    from snpcerts.verify.policy_file import PolicyFileError as PolicyFileError
    from snpcerts.verify.policy_file import read_policy as read_policy
    from snpcerts.verify.revocation import JudgedList as JudgedList
    from snpcerts.verify.sources import OWN as OWN
    from snpcerts.verify.sources import AsyncCollateralSource as AsyncCollateralSource
    from snpcerts.verify.sources import CollateralRequest as CollateralRequest
    from snpcerts.verify.sources import CollateralSource as CollateralSource
    from snpcerts.verify.sources import Given as Given
    from snpcerts.verify.sources import GivenCrls as GivenCrls
    from snpcerts.verify.sources import InThread as InThread
    from snpcerts.verify.sources import averify_with as averify_with
    from snpcerts.verify.sources import verify_with as verify_with
    from snpcerts.verify.verdict import ReportTcbs as ReportTcbs
    from snpcerts.verify.verdict import SourceFault as SourceFault
    from snpcerts.verify.verdict import Status as Status
    from snpcerts.verify.verdict import Verdict as Verdict
    from snpcerts.verify.verdict_check import Check as Check
    from snpcerts.verify.verdict_check import CheckState as CheckState
else:
    from snpcerts.exports import lazy_exports

    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "bulk": ("verify_many",),
            "choosing": ("Part",),
            "collateral": ("Collateral", "SuppliedCrl", "Supplier"),
            "ear": ("EarSigner", "ear_claims"),
            "evidence": ("Evidence", "RuntimeData", "Shape"),
            "judging": ("verify",),
            "policy": (
                "GuestPolicyBits",
                "PlatformInfoBits",
                "Policy",
                "ProcessorFloor",
                "Revocation",
                "TcbFloor",
                "WithoutCpuid",
            ),
            "policy_file": ("PolicyFileError", "read_policy"),
            "snpcerts.endorsement.reason": ("NextStep", "Reason", "ReasonCode"),
            "revocation": ("JudgedList",),
            "sources": (
                "OWN",
                "AsyncCollateralSource",
                "CollateralSource",
                "Given",
                "GivenCrls",
                "InThread",
                "CollateralRequest",
                "averify_with",
                "verify_with",
            ),
            "verdict": ("ReportTcbs", "SourceFault", "Status", "Verdict"),
            "verdict_check": ("Check", "CheckState"),
        },
    )
