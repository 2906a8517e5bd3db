# SPDX-License-Identifier: Apache-2.0
"""Revocation lists: which are believed, and what they withdraw."""

from __future__ import annotations

import base64
import textwrap
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.product import Product
from snpcerts.endorsement.certificate import load_certificate
from snpcerts.endorsement.crl import MAX_CRL_SIZE, check_crl, crl_problem_at, load_crl
from snpcerts.errors import FormatError
from tests.endorsement.small_ca import (
    CERT_SIGN,
    END,
    NOON,
    START,
    CrlRecipe,
    SmallCa,
    authority_extensions,
    ec_key,
    pss_algorithm,
)
from tests.keys import rsa_key

CA = SmallCa()
ASK_SERIAL, ARK_SERIAL = 0x20001, 0x20000
ROOT = load_certificate(CA.ark.but(serial=ARK_SERIAL).make(), "ARK")
ASK = load_certificate(CA.ask.but(serial=ASK_SERIAL).make(), "ASK")
SOUND = CrlRecipe(CA)


def faults(recipe: CrlRecipe) -> list[str]:
    found = check_crl(load_crl(recipe.make()), ROOT, ASK, "ASK")
    return [problem.code.value for problem in found]


def test_a_list_that_names_neither_withdraws_nothing() -> None:
    assert faults(SOUND) == []
    assert faults(SOUND.but(revoked=(1, 0, 0x20002))) == []


def test_a_listed_serial_number_is_revoked() -> None:
    assert faults(SOUND.but(revoked=(7, ASK_SERIAL))) == ["ask-revoked"]
    assert faults(SOUND.but(revoked=(ARK_SERIAL, ASK_SERIAL))) == ["ask-revoked", "ark-revoked"]


def test_the_message_says_which_certificate_and_when() -> None:
    revocation = load_crl(SOUND.but(revoked=(ASK_SERIAL,)).make())
    (problem,) = check_crl(revocation, ROOT, ASK, "ASVK")
    assert problem.message == "the ASVK with serial number 0x20001 was revoked on 2024-01-01"


def test_a_certificate_of_another_issuer_has_no_entry_in_the_list() -> None:
    """Serial numbers are unique only within one issuer, and all leaves have 0."""
    other = load_certificate(SmallCa(Product.GENOA).ask.but(serial=ASK_SERIAL).make(), "ASK")
    revocation = load_crl(SOUND.but(revoked=(ASK_SERIAL,)).make())
    assert check_crl(revocation, ROOT, other, "ASK") == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"issuer": "ARK-Genoa TEST"}, "crl-issuer"),
        ({"signer": rsa_key("another")}, "crl-signature"),
        ({"signer": ec_key("another")}, "crl-signature"),
        ({"salt": 32}, "crl-signature"),
        (
            {"inner": pss_algorithm(salt=32), "outer": pss_algorithm(salt=32)},
            "crl-signature-algorithm",
        ),
        # A delta list, and a list with an unknown critical extension.
        ({"extensions": (("2.5.29.27", True, b"\x02\x01\x01"),)}, "crl-extensions"),
        ({"extensions": (("1.2.3.4", True, b"\x05\x00"),)}, "crl-extensions"),
        # In an entry of an indirect list, such an extension names another issuer.
        ({"entry_extensions": (("1.2.3.4", True, b"\x05\x00"),)}, "crl-extensions"),
    ],
)
def test_a_list_that_cannot_be_believed_withdraws_nothing_and_says_why(
    changes: dict[str, object], expected: str
) -> None:
    """Anyone can write a list; if a forged one were believed, genuine evidence would be refused."""
    assert faults(SOUND.but(revoked=(ASK_SERIAL,), **changes)) == [expected]


def test_a_list_whose_signature_has_unused_bits_is_not_believed() -> None:
    """Otherwise a list could be changed without invalidating its signature."""
    made = (SOUND.but(unused_bits=1).make() for _ in range(100))
    data = next(each for each in made if not each[-1] & 1)
    found = check_crl(load_crl(data), ROOT, ASK, "ASK")
    assert [problem.code.value for problem in found] == ["crl-signature"]


def test_other_extensions_do_no_harm() -> None:
    assert faults(SOUND.but(extensions=(("1.2.3.4", False, b"\x05\x00"),))) == []


def test_a_root_that_may_not_sign_lists_does_not() -> None:
    root = CA.ark.but(extensions=authority_extensions(None, CERT_SIGN)).make()
    found = check_crl(load_crl(SOUND.make()), load_certificate(root, "ARK"), ASK, "ASK")
    assert [problem.code.value for problem in found] == ["crl-issuer"]


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (START - timedelta(seconds=1), "crl-not-yet-valid"),
        (START, None),
        (NOON, None),
        (END, None),
        (END + timedelta(seconds=1), "crl-expired"),
        (datetime(2060, 1, 1, tzinfo=UTC), "crl-expired"),
    ],
)
def test_a_list_is_good_from_this_update_to_next_update(at: datetime, expected: str | None) -> None:
    problem = crl_problem_at(load_crl(SOUND.make()), at)
    assert (problem and problem.code.value) == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a readable"),
        (b"garbage", "not a readable"),
        (SOUND.make() + b"\0", "not a readable"),
        (SOUND.make()[:-1], "not a readable"),
        (CA.ark.make(), "not a readable"),
        (SOUND.but(next_update=None).make(), "the field nextUpdate"),
        (SOUND.but(version=None).make(), "X.509 v2"),
        (SOUND.but(version=0).make(), "X.509 v2"),
        (b"\0" * (MAX_CRL_SIZE + 1), "at most"),
        (b"-----BEGIN X509 CRL-----\nAAA\n-----END X509 CRL-----\n", "base64"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "PEM"),
    ],
    ids=range(11),
)
def test_data_that_is_not_one_list_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        load_crl(data)


def test_pem_serves_as_well() -> None:
    data = SOUND.make()
    body = "\n".join(textwrap.wrap(base64.b64encode(data).decode(), 64))
    pem = f"-----BEGIN X509 CRL-----\n{body}\n-----END X509 CRL-----\n".encode()
    assert load_crl(pem) == load_crl(data)
    with pytest.raises(FormatError):
        load_crl(pem + pem)


_LISTS = [SOUND.make(), SOUND.but(revoked=(ASK_SERIAL,)).make()]


@given(st.sampled_from(_LISTS), st.integers(0), st.integers(0, 7))
def test_no_bit_of_a_list_can_change(data: bytes, index: int, bit: int) -> None:
    at = index % len(data)
    changed = data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]
    try:
        revocation = load_crl(changed)
    except FormatError:
        return
    found = {problem.code.value for problem in check_crl(revocation, ROOT, ASK, "ASK")}
    assert found
    assert found.isdisjoint({"ask-revoked", "ark-revoked"})


@given(st.binary(max_size=300))
def test_garbage_is_never_anything_but_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        load_crl(data)
