# SPDX-License-Identifier: Apache-2.0
"""Exactly one certificate is read, and every defect raises the same kind of error."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import warnings

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.endorsement.certificate import (
    MAX_CERTIFICATE_SIZE,
    common_name,
    load_certificate,
)
from snpcerts.endorsement.vek import EndorsementCert
from snpcerts.errors import FormatError
from tests.endorsement.small_ca import KEY_USAGE, SmallCa, der, flipped, integer

CA = SmallCa()


def pem(data: bytes, label: str = "CERTIFICATE", end: str = "\n") -> bytes:
    body = base64.encodebytes(data).decode().replace("\n", end)
    return f"-----BEGIN {label}-----{end}{body}-----END {label}-----{end}".encode()


def test_der_and_pem_give_the_same_certificate() -> None:
    data = CA.leaf.make()
    for form in (data, pem(data), pem(data, end="\r\n"), b"\n " + pem(data) + b"\n\n"):
        assert load_certificate(form, "VCEK").public_bytes(Encoding.DER) == data


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda der: der + b"\0",
        lambda der: der[:-1],
        lambda der: b"\n" + der,
        lambda der: pem(der) + pem(der),
        lambda der: pem(der) + b"more",
        lambda der: b"subject=x\n" + pem(der),
        lambda der: pem(der, "TRUSTED CERTIFICATE"),
        lambda der: pem(der).replace(b"-----END", b"=-----END"),
        lambda der: pem(der + b"\0"),
        lambda _: b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        lambda der: pem(der) + b" " * MAX_CERTIFICATE_SIZE,
    ],
)
def test_anything_but_one_whole_certificate_is_refused(spoil: object) -> None:
    with pytest.raises(FormatError, match="VCEK"):
        load_certificate(spoil(CA.leaf.make()), "VCEK")  # type: ignore[operator]


@pytest.mark.parametrize("version", [0, 1])
def test_older_x509_versions_are_refused(version: int) -> None:
    with pytest.raises(FormatError):
        load_certificate(CA.ark.but(version=version, extensions=()).make(), "ARK")


def test_an_extension_twice_is_refused() -> None:
    leaf = CA.leaf
    doubled = leaf.but(extensions=(*leaf.extensions, leaf.extensions[3]))
    with pytest.raises(FormatError, match="occurs twice"):
        load_certificate(doubled.make(), "VCEK")


def test_an_extension_that_cannot_be_read_is_refused_at_once() -> None:
    with pytest.raises(FormatError):
        load_certificate(CA.ark.with_extension(KEY_USAGE, b"\xff").make(), "ARK")


def test_serial_number_zero_gives_no_warning_in_any_thread() -> None:
    """The suite turns warnings into errors; threads share the process's filters."""
    data = CA.leaf.make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            loaded = list(pool.map(lambda _: load_certificate(data, "VCEK"), range(200)))
    assert len(loaded) == 200


def test_other_deprecations_still_warn() -> None:
    from cryptography.utils import CryptographyDeprecationWarning

    load_certificate(CA.leaf.make(), "VCEK")
    with pytest.warns(CryptographyDeprecationWarning, match="something else"):
        warnings.warn("something else", CryptographyDeprecationWarning, stacklevel=1)


def test_a_name_with_two_common_names_has_none() -> None:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = [x509.NameAttribute(NameOID.COMMON_NAME, text) for text in ("SEV-VCEK", "SEV-VLEK")]
    assert common_name(x509.Name(parts[:1])) == "SEV-VCEK"
    assert common_name(x509.Name(parts)) is None
    assert common_name(x509.Name([])) is None


@given(st.binary(max_size=200) | st.binary(max_size=200).map(pem))
def test_random_bytes_are_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        load_certificate(data, "VCEK")


@given(st.data())
def test_a_damaged_certificate_is_read_or_is_a_format_error(data: st.DataObject) -> None:
    """Every byte can be hit; damage that still parses is for the chain to find."""
    certificate = CA.leaf.make()
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(certificate) - 1))
        certificate = flipped(certificate, index, data.draw(st.integers(0, 7)))
    with contextlib.suppress(FormatError):
        EndorsementCert.from_certificate(load_certificate(certificate, "VCEK"))


@given(st.binary(max_size=400))
def test_random_names_keys_and_extensions_are_a_format_error(data: bytes) -> None:
    """A well-formed shell around garbage gets further into the reader than bare garbage."""
    algorithm = CA.leaf.inner
    shell = der(
        0x30,
        der(0x30, der(0xA0, integer(2)), integer(0), algorithm, data),
        algorithm,
        b"\x03\x01\0",
    )
    with pytest.raises(FormatError):
        load_certificate(shell, "VCEK")
