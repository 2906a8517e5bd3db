# SPDX-License-Identifier: Apache-2.0
"""Veraison's libraries read what snpcerts writes: EARs and CoRIMs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from snpcerts.abi.tcb import TcbVersion
from snpcerts.verify.ear import EarSigner, ear_claims
from snpcerts.verify.policy import Policy, TcbFloor
from snpcerts.verify.reference_values import CORIM_PROFILE, corim
from snpcerts.verify.trust_vector import trust_vector
from tests.endorsement.small_ca import flipped
from tests.verify.test_ear import CA, KEY, judged

from .conftest import LIMIT

Ran = subprocess.CompletedProcess[str]


def run(*command: Path | str) -> Ran:
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("genuine", [True, False])
def test_an_ear_verifies_and_says_what_we_said(
    veraison: Path, tmp_path: Path, genuine: bool
) -> None:
    verdict = judged(CA.report() if genuine else flipped(CA.report(), 0x90))
    claims = ear_claims(verdict, policy_id="policy", nonce=b"challenge")
    (tmp_path / "token").write_text(EarSigner(KEY).sign(claims))
    (tmp_path / "key.pem").write_bytes(public_pem(KEY))
    done = run(veraison, "ear", tmp_path / "key.pem", tmp_path / "token")
    assert (done.returncode, done.stderr) == (0, "")
    read: dict[str, Any] = json.loads(done.stdout)
    assert (read["eat_profile"], read["eat_nonce"]) == (claims["eat_profile"], claims["eat_nonce"])
    ours, theirs = claims["submods"]["cpu0"], read["submods"]["cpu0"]
    vector = theirs.pop("ear.trustworthiness-vector")
    assert {name: value for name, value in vector.items() if value} == ours.pop(
        "ear.trustworthiness-vector"
    )
    assert theirs == ours
    assert trust_vector(verdict)


def test_an_ear_of_another_key_does_not_verify(veraison: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(EarSigner(KEY).sign(ear_claims(judged(), policy_id="policy")))
    other = ec.derive_private_key(8, ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(public_pem(other))
    done = run(veraison, "ear", tmp_path / "key.pem", tmp_path / "token")
    assert done.returncode == 1
    assert "verif" in done.stderr


def test_a_corim_is_read_and_valid(veraison: Path, tmp_path: Path) -> None:
    tcb = TcbVersion(bootloader=4, tee=0, snp=24, microcode=219)
    policy = Policy(
        measurements=(b"\1" * 48, b"\2" * 48),
        host_data=b"h" * 32,
        family_id=b"f" * 16,
        image_id=b"i" * 16,
        minimum_guest_svn=3,
        vmpls=(0,),
        chip_ids=(b"c" * 64,),
        id_key_digests=(b"\3" * 48,),
        author_key_digests=(b"\4" * 48,),
        minimum_tcb=TcbFloor(milan=tcb),
        minimum_launch_tcb=TcbFloor(milan=tcb),
    )
    values = corim(policy)
    assert values.left_out == ()
    (tmp_path / "corim").write_bytes(values.data)
    done = run(veraison, "corim", tmp_path / "corim")
    assert (done.returncode, done.stderr) == (0, "")
    read = json.loads(done.stdout)
    assert read["profile"] == CORIM_PROFILE
    (module,) = read["comids"]
    found = module["triples"]["reference-values"]
    assert len(found) == 2
    keys = [[each["key"]["value"] for each in triple["measurements"]] for triple in found]
    assert keys == [[1, 3, 4, 5, 641, 642, 643, 644, 647, 3328, 3968]] * 2
    assert found[0]["measurements"][8]["value"]["svn"] == {
        "type": "min-value",
        "value": int.from_bytes(tcb.pack(), "little"),
    }


def test_a_damaged_corim_is_not_read(veraison: Path, tmp_path: Path) -> None:
    (tmp_path / "corim").write_bytes(corim(Policy(measurements=(bytes(48),))).data[:-3])
    assert run(veraison, "corim", tmp_path / "corim").returncode == 1
