# SPDX-License-Identifier: Apache-2.0
"""EARs: a verdict in the terms of other systems, and a signature that these can check."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from snpcerts.cli.main import main
from snpcerts.endorsement.anchors import anchor_from_certificate
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.reason import NextStep, Reason, ReasonCode
from snpcerts.errors import FormatError, UsageError
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.ear import PROFILE, EarSigner, ear_claims
from snpcerts.verify.judging import verify
from snpcerts.verify.policy import GuestPolicyBits, Policy
from snpcerts.verify.trust_vector import (
    BY_CODE,
    CONTRAINDICATED,
    CRYPTO_FAILED,
    NO_CLAIM,
    TrustClaim,
    TrustTier,
    claims_of,
    is_of_policy,
    tier,
    trust_vector,
)
from snpcerts.verify.verdict import Status, Verdict, status_of
from tests.endorsement.small_ca import SmallCa, flipped
from tests.keys import rsa_key

CA = SmallCa()
AT = datetime(2025, 6, 1, 12, tzinfo=UTC)
KEY = ec.derive_private_key(7, ec.SECP256R1())
NONCE = b"challenge"
ROOT = Path(__file__).parents[2]


def pem(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None
) -> bytes:
    protection = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def judged(report: bytes | None = None, **demands: Any) -> Verdict:
    collateral = Collateral(CA.leaf.make(), None, CA.ask.make(), CA.ark.make())
    anchors = (anchor_from_certificate(load_certificate(CA.ark.make(), "ARK")),)
    data = CA.report() if report is None else report
    return verify(data, collateral, Policy(**demands), anchors=anchors, at=AT)


def appraisal(verdict: Verdict) -> dict[str, Any]:
    claims = ear_claims(verdict, policy_id="p", at=AT)
    found: dict[str, Any] = claims["submods"]["cpu0"]
    return found


def test_a_verified_report_is_affirmed_under_trustees_names() -> None:
    verdict = judged(CA.report(report_data=NONCE.ljust(64, b"\0")), report_data=NONCE)
    claims = ear_claims(verdict, policy_id="p", nonce=NONCE, at=AT)
    assert claims["eat_profile"] == PROFILE
    assert (claims["iat"], claims["exp"] - claims["iat"]) == (int(AT.timestamp()), 300)
    assert claims["eat_nonce"] == "Y2hhbGxlbmdl"
    (found,) = claims["submods"].values()
    assert found["ear.status"] == "affirming"
    assert found["ear.trustworthiness-vector"] == {
        "configuration": 3,
        "hardware": 2,
        "runtime-opaque": 2,
    }
    evidence = found["ear.veraison.annotated-evidence"]
    assert evidence["report_data"] == NONCE.hex().ljust(128, "0")
    # Names and types as in Trustee's tcb_claims.md.
    assert {name: type(value) for name, value in evidence["snp"].items()} == {
        "chip_id": str,
        "measurement": str,
        "platform_smt_enabled": bool,
        "platform_tsme_enabled": bool,
        "policy_abi_major": int,
        "policy_abi_minor": int,
        "policy_debug_allowed": bool,
        "policy_migrate_ma": bool,
        "policy_single_socket": bool,
        "policy_smt_allowed": bool,
        "reported_tcb_bootloader": int,
        "reported_tcb_microcode": int,
        "reported_tcb_snp": int,
        "reported_tcb_tee": int,
    }


def test_what_was_demanded_and_met_is_affirmed() -> None:
    verdict = judged(
        measurements=(bytes(48),),
        chip_ids=(CA.report_chip_id,),
        guest_policy=GuestPolicyBits(smt=True),
    )
    assert verdict.status is Status.VERIFIED
    assert trust_vector(verdict) == {
        TrustClaim.INSTANCE_IDENTITY: 2,
        TrustClaim.CONFIGURATION: 2,
        TrustClaim.EXECUTABLES: 3,
        TrustClaim.HARDWARE: 2,
        TrustClaim.RUNTIME_OPAQUE: 2,
    }


def test_a_guest_that_can_be_debugged_is_contraindicated_even_where_the_policy_takes_it() -> None:
    report = CA.report(policy=0xB0000)
    verdict = judged(report, guest_policy=GuestPolicyBits(debug=None))
    assert verdict.status is Status.VERIFIED
    found = appraisal(verdict)
    assert found["ear.status"] == "contraindicated"
    assert found["ear.trustworthiness-vector"]["runtime-opaque"] == CONTRAINDICATED


def test_a_refusal_by_the_policy_says_which_claim_fails() -> None:
    found = appraisal(judged(measurements=(bytes(47) + b"\1",)))
    assert found["ear.status"] == "contraindicated"
    assert found["ear.trustworthiness-vector"]["executables"] == CONTRAINDICATED
    assert found["ear.trustworthiness-vector"]["hardware"] == 2
    assert found["ear.veraison.policy-claims"]["snpcerts.reasons"] == ["policy-measurement"]
    assert "snp" in found["ear.veraison.annotated-evidence"]


def test_nothing_is_said_of_a_report_that_is_not_genuine() -> None:
    found = appraisal(judged(flipped(CA.report(), 0x90)))
    assert found["ear.status"] == "contraindicated"
    assert set(found["ear.trustworthiness-vector"].values()) == {CRYPTO_FAILED}
    assert "ear.veraison.annotated-evidence" not in found


def test_missing_certificates_allow_no_claim() -> None:
    anchors = (anchor_from_certificate(load_certificate(CA.ark.make(), "ARK")),)
    verdict = verify(CA.report(), Collateral(None, None, None, None), anchors=anchors, at=AT)
    found = appraisal(verdict)
    assert found["ear.status"] == "none"
    assert found["ear.trustworthiness-vector"] == {}


@pytest.mark.parametrize("code", ReasonCode)
def test_no_reason_leaves_a_vector_that_affirms(code: ReasonCode) -> None:
    """Consumers may look at the vector alone, at the status alone, or at both."""
    reasons = (Reason(code, "x"),)
    good = judged()
    verdict = replace(good, status=status_of(reasons), reasons=reasons)
    vector = trust_vector(verdict)
    found = tier(verdict, vector)
    if code.next_step is NextStep.REFUSE:
        assert found is TrustTier.CONTRAINDICATED
    else:
        assert (found, vector) == (TrustTier.NONE, {})
    if is_of_policy(code):
        assert code in BY_CODE, "BY_CODE must have every reason that comes from a policy"
        assert max(vector.values()) >= CONTRAINDICATED
    else:
        assert all(value < 2 or value >= CONTRAINDICATED for value in vector.values())


def test_the_documentation_lists_what_every_reason_becomes() -> None:
    text = (ROOT / "docs" / "relying-parties.md").read_text()
    section = text.split("## Verdicts as EARs", 1)[1].split("\n## ", 1)[0]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \|$", section, re.MULTILINE))
    assert rows == {code.value: in_words(code) for code in ReasonCode}


def in_words(code: ReasonCode) -> str:
    claims = claims_of(code)
    values = set(claims.values())
    if len(claims) == len(TrustClaim) and len(values) == 1:
        (value,) = values
        return "no claim" if value == NO_CLAIM else f"every claim {value}"
    return ", ".join(f"{claim.value} {value}" for claim, value in claims.items())


def test_a_token_is_signed_with_es256_and_brings_its_key() -> None:
    token = EarSigner.from_pem(pem(KEY)).sign(ear_claims(judged(), policy_id="p"))
    header = jwt.get_unverified_header(token)
    assert header["alg"] == "ES256"
    assert (
        jwt.PyJWK.from_dict(header["jwk"]).key.public_numbers() == KEY.public_key().public_numbers()
    )
    claims = jwt.decode(token, KEY.public_key(), ["ES256"])
    assert claims["submods"]["cpu0"]["ear.status"] == "affirming"
    other = ec.derive_private_key(8, ec.SECP256R1()).public_key()
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, other, ["ES256"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "expected a private key"),
        (b"\xff\0" * 50, "expected a private key"),
        (
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "expected a private key",
        ),
        (pem(ec.derive_private_key(7, ec.SECP384R1())), "found secp384r1"),
        (pem(rsa_key("ark")), "found another kind of key"),
        (pem(KEY, b"password"), "password"),
        (CA.ark.make(), "expected a private key"),
    ],
    ids=range(7),
)
def test_other_keys_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        EarSigner.from_pem(data)


def test_a_nonce_or_a_time_that_no_ear_can_carry_is_refused() -> None:
    for nonce in (b"short", bytes(65)):
        with pytest.raises(UsageError, match="nonce"):
            ear_claims(judged(), policy_id="p", nonce=nonce)
    with pytest.raises(UsageError, match="time zone"):
        ear_claims(judged(), policy_id="p", at=AT.replace(tzinfo=None))
    late = ear_claims(judged(), policy_id="p", at=AT, lifetime=timedelta(days=1))
    assert late["exp"] - late["iat"] == 86400


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report").write_bytes(CA.report())
    (tmp_path / "key.pem").write_bytes(pem(KEY))
    (tmp_path / "certs").mkdir()
    for name, recipe in (("vcek", CA.leaf), ("ask", CA.ask), ("ark", CA.ark)):
        (tmp_path / "certs" / f"{name}.der").write_bytes(recipe.make())
    return tmp_path


VERIFY = ("verify", "report", "--certs", "certs", "--anchor", "certs/ark.der", "--at")
COMMAND = (*VERIFY, "2025-06-01T12:00:00Z", "--ear-key", "key.pem")


def read(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token.strip(), KEY.public_key(), ["ES256"])
    return claims


def test_the_command_writes_the_ear_of_its_verdict(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, "--ear", "out.jwt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "verified"
    claims = read((place / "out.jwt").read_text())
    assert claims["submods"]["cpu0"]["ear.appraisal-policy-id"] == "snpcerts:default"
    assert main([*COMMAND, "--ear", "out.jwt", "--report-data", "00112233445566"]) == 1
    claims = read((place / "out.jwt").read_text())
    assert claims["submods"]["cpu0"]["ear.status"] == "contraindicated"
    assert claims["submods"]["cpu0"]["ear.appraisal-policy-id"] == "snpcerts:default+options"
    assert claims["eat_nonce"] == "ABEiM0RVZg"


def test_standard_output_takes_the_ear_in_place_of_the_verdict(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "policy.toml").write_text("")
    (place / "policy.toml").write_text("vmpls = [0]\n")
    assert main([*COMMAND, "--ear", "-", "--policy", "policy.toml"]) == 0
    found = read(capsys.readouterr().out)["submods"]["cpu0"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", found["ear.appraisal-policy-id"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((*COMMAND,), 2),
        ((*COMMAND[:-2], "--ear", "out.jwt"), 2),
        ((*COMMAND, "--ear", "out.jwt", "--ear-key", "missing.pem"), 2),
        ((*COMMAND, "--ear", "out.jwt", "--ear-key", "certs"), 2),
        ((*COMMAND, "--ear", "out.jwt", "--ear-key", "report"), 2),
        ((*COMMAND, "--ear", "no/such/out.jwt"), 1),
        (("verify", "report", "report", *COMMAND[2:], "--ear", "out.jwt"), 2),
    ],
)
def test_a_wrong_use_of_the_options_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int
) -> None:
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 or "hint" in captured.err
    assert not (place / "out.jwt").exists()
