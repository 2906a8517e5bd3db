# SPDX-License-Identifier: Apache-2.0
"""Writes verdicts as EARs (EAT Attestation Results): JSON Web Tokens that are signed with ES256.

The profile, the claim names and the layout of the annotated evidence are those of Trustee's
attestation service, so that programs written for that service can read these EARs. The evidence
claims have flat names under ``ear.veraison.annotated-evidence`` / ``snp``, and are present only for
a genuine report. The verdict's reason codes are under ``ear.veraison.policy-claims``.

Sources: draft-ietf-rats-ear; github.com/veraison/ear; attestation-service/docs/tcb_claims.md of
Trustee.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from snpcerts import __version__
from snpcerts.abi.report import Report
from snpcerts.errors import FormatError, UsageError
from snpcerts.verify.bits import GUEST_POLICY_BITS, PLATFORM_INFO_BITS
from snpcerts.verify.trust_vector import is_of_policy, tier, trust_vector
from snpcerts.verify.verdict import Verdict

PROFILE: Final = "tag:github.com,2024:confidential-containers/Trustee"
DEVELOPER: Final = "snpcerts"
ISSUER: Final = "snpcerts"
SUBMODULE: Final = "cpu0"
LIFETIME: Final = timedelta(minutes=5)
MIN_NONCE, MAX_NONCE = 6, 64  # bytes: 8 to 88 characters in the token

_COORDINATE_SIZE = 32
_ABI_MAJOR_SHIFT = 8


@dataclass(frozen=True, slots=True)
class EarSigner:
    """A P-256 key that signs EARs."""

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def from_pem(cls, data: bytes, what: str = "EAR key") -> EarSigner:
        """Parse a private key in PEM (PKCS #8 or SEC 1), without a password.

        Raises :class:`FormatError`, which names ``what``, if ``data`` is anything else.
        """
        try:
            key = load_pem_private_key(data, password=None)
        except TypeError:
            raise FormatError(
                what,
                "expected a key without a password, found a password-protected key",
                hint="decrypt the key first, with openssl pkey -in KEY.pem -out PLAIN.pem",
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise FormatError(
                what,
                "expected a private key in PEM, found none",
                hint="make a key with openssl ecparam -genkey -name prime256v1 -noout -out KEY.pem",
            ) from None
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return cls(key)
        found = (
            f"{key.curve.name}"
            if isinstance(key, ec.EllipticCurvePrivateKey)
            else "another kind of key"
        )
        raise FormatError(what, f"expected an EC P-256 key (ES256), found {found}")

    def jwk(self) -> dict[str, str]:
        """Return the public key as a JSON Web Key."""
        numbers = self.key.public_key().public_numbers()
        x, y = (_base64url(n.to_bytes(_COORDINATE_SIZE, "big")) for n in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y}

    def sign(self, claims: dict[str, Any]) -> str:
        """Return the claims as a signed JWT, with the public key in the header, as Trustee does."""
        import jwt

        return jwt.encode(claims, self.key, algorithm="ES256", headers={"jwk": self.jwk()})


def ear_claims(
    verdict: Verdict,
    *,
    policy_id: str,
    nonce: bytes | None = None,
    at: datetime | None = None,
    lifetime: timedelta = LIFETIME,
    issuer: str = ISSUER,
) -> dict[str, Any]:
    """Return the claims of an EAR about a verdict, not yet signed.

    ``policy_id`` names the policy. ``nonce`` is the challenge, 6 to 64 bytes, that the caller
    required in the report. ``at`` is the time of issue (default: now), with a time zone. Raises
    :class:`UsageError` for a nonce of another size, or if ``at`` has no time zone.
    """
    issued = datetime.now(UTC) if at is None else at
    if issued.tzinfo is None:
        raise UsageError("at: expected a time with a time zone, found a time without one")
    if nonce is not None and not MIN_NONCE <= len(nonce) <= MAX_NONCE:
        raise UsageError(f"nonce: expected {MIN_NONCE} to {MAX_NONCE} bytes, found {len(nonce)}")
    vector = trust_vector(verdict)
    next_step = verdict.next_step
    appraisal: dict[str, Any] = {
        "ear.status": tier(verdict, vector).value,
        "ear.trustworthiness-vector": {claim.value: value for claim, value in vector.items()},
        "ear.appraisal-policy-id": policy_id,
        "ear.veraison.policy-claims": {
            "snpcerts.verdict": verdict.status.value,
            "snpcerts.reasons": list(dict.fromkeys(each.code.value for each in verdict.reasons)),
            "snpcerts.next-step": None if next_step is None else next_step.value,
        },
    }
    if verdict.report is not None and all(is_of_policy(each.code) for each in verdict.reasons):
        appraisal["ear.veraison.annotated-evidence"] = _annotated(verdict, verdict.report)
    claims: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": int(issued.timestamp()),
        "exp": int((issued + lifetime).timestamp()),
        "iss": issuer,
        "ear.verifier-id": {"build": f"snpcerts {__version__}", "developer": DEVELOPER},
        "submods": {SUBMODULE: appraisal},
    }
    if nonce is not None:
        claims["eat_nonce"] = _base64url(nonce)
    return claims


def _annotated(verdict: Verdict, report: Report) -> dict[str, Any]:
    """Return the report's fields, under the names that Trustee uses."""
    fields = report.fields
    policy, platform = fields.policy, fields.platform_info
    reported = verdict.tcbs.reported
    snp: dict[str, Any] = {
        "policy_abi_major": policy >> _ABI_MAJOR_SHIFT & 0xFF,
        "policy_abi_minor": policy & 0xFF,
        "policy_smt_allowed": GUEST_POLICY_BITS["smt"].of(policy),
        "policy_migrate_ma": GUEST_POLICY_BITS["migrate_ma"].of(policy),
        "policy_debug_allowed": GUEST_POLICY_BITS["debug"].of(policy),
        "policy_single_socket": GUEST_POLICY_BITS["single_socket"].of(policy),
        "platform_tsme_enabled": PLATFORM_INFO_BITS["tsme_en"].of(platform),
        "platform_smt_enabled": PLATFORM_INFO_BITS["smt_en"].of(platform),
        "measurement": fields.measurement.hex(),
        "chip_id": fields.chip_id.hex(),
    }
    levels = {} if reported is None else reported.components()
    snp |= {f"reported_tcb_{name}": level for name, level in levels.items()}
    return {
        "snp": snp,
        "report_data": fields.report_data.hex(),
        "init_data": fields.host_data.hex(),
    }


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
