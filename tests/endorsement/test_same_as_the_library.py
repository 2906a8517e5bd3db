# SPDX-License-Identifier: Apache-2.0
"""This project and ``cryptography.x509`` read the same values from certificates and revocation
lists.

If a serial number is 0, the library is given a copy of the certificate with a different serial
number (``tests/x509_library.py``). Both accept the same bytes and read the same values from them,
with these exceptions:

* Only this project refuses a serial number that is negative or longer than 20 bytes; an empty list
  of extensions or of revocation-list entries; and a revocation list of version 1.
* Only the library refuses bad content that this project does not read: the content of any extension
  but AMD's, basicConstraints and keyUsage; and the parameters of algorithms, which this project
  compares as bytes later. If the content in these places is good, the library accepts the
  certificate too.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from snpcerts.abi.product import Product
from snpcerts.endorsement import structure
from snpcerts.endorsement.certificate import (
    MAX_SERIAL_NUMBER,
    Certificate,
    common_name,
    load_certificate,
)
from snpcerts.endorsement.crl import RevocationList, load_crl
from snpcerts.endorsement.signature import ALGORITHM
from snpcerts.endorsement.vek import AMD_ARC, VekKind
from snpcerts.errors import FormatError
from tests.endorsement.small_ca import (
    BASIC_CONSTRAINTS,
    KEY_USAGE,
    CrlRecipe,
    SmallCa,
    der,
    integer,
    oid,
)
from tests.sizes import sized
from tests.x509_library import by_the_library, serial_at

_REFUSED = (
    TypeError,
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_EVALUATED = (KEY_USAGE, BASIC_CONSTRAINTS)

CAS = (
    SmallCa(),
    SmallCa(Product.GENOA, ark_key="genoa ark"),
    SmallCa(Product.TURIN),
    SmallCa(kind=VekKind.VLEK),
)
MADE = [recipe.make() for ca in CAS for recipe in (ca.leaf, ca.ask, ca.ark)]
LISTS = [
    CrlRecipe().make(),
    CrlRecipe(revoked=(0x10001, 2, 3)).make(),
    CrlRecipe(revoked=(5,), entry_extensions=(("2.5.29.21", False, b"\x0a\x01\x01"),)).make(),
]


def library(data: bytes) -> x509.Certificate | None:
    """The certificate; None if the library refuses a part of it or the version is not 3."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = by_the_library(data)
            _ = (read.subject, read.issuer, read.extensions, read.public_key())
            _ = (read.not_valid_before_utc, read.not_valid_after_utc, read.signature)
    except _REFUSED:
        return None
    return read if read.version is x509.Version.v3 else None


def ours(data: bytes) -> Certificate | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_certificate(data, "certificate")
    except FormatError:
        return None


def unlike(read: Certificate, other: x509.Certificate) -> list[str]:
    """Which parts the two read differently."""
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    by_oid = {each.oid.dotted_string: each for each in read.extensions}
    unknown = {
        each.oid.dotted_string: each.value.value
        for each in other.extensions
        if isinstance(each.value, x509.UnrecognizedExtension)
    }
    constraints = [e.value for e in other.extensions if isinstance(e.value, x509.BasicConstraints)]
    usages = [e.value for e in other.extensions if isinstance(e.value, x509.KeyUsage)]
    same = {
        "serial number": (read.serial_number or 1) == other.serial_number,
        "subject": read.subject == other.subject,
        "common name": common_name(read.subject) == common_name(other.subject),
        "issuer": read.issuer == other.issuer,
        "not before": read.not_valid_before_utc == other.not_valid_before_utc,
        "not after": read.not_valid_after_utc == other.not_valid_after_utc,
        "key": read.public_key().public_bytes(*spki) == other.public_key().public_bytes(*spki),
        "signature": (read.signature, read.unused_bits) == (other.signature, 0)
        or bool(read.unused_bits),
        "signed": len(read.tbs_certificate_bytes) == len(other.tbs_certificate_bytes),
        "extensions": [(each.oid, each.critical) for each in read.extensions]
        == [(each.oid, each.critical) for each in other.extensions],
        "values": all(by_oid[name].value == value for name, value in unknown.items()),
        "constraints": [(each.ca, each.path_length) for each in constraints]
        == [(each.ca, each.path_length) for each in (read.basic_constraints,) if each is not None],
        "usage": [(each.key_cert_sign, each.crl_sign) for each in usages]
        == [(each.key_cert_sign, each.crl_sign) for each in (read.key_usage,) if each is not None],
    }
    return [name for name, is_same in same.items() if not is_same]


def without_unread_parts(data: bytes) -> bytes:
    """The same certificate, with sound content in the places that this project does not read."""
    outer = structure.read(structure.Signed, data)
    tbs = outer.tbs.parse(structure.TbsCertificate)
    tbs.signature = outer.signature_algorithm = structure.read(asn1.TLV, ALGORITHM)
    kept = [each for each in tbs.extensions or [] if _is_read(each.extn_id.dotted_string)]
    tbs.extensions = kept or None
    outer.tbs = structure.read(asn1.TLV, structure.der_of(tbs))
    return structure.der_of(outer)


def _is_read(dotted: str) -> bool:
    return dotted in _EVALUATED or dotted.startswith(AMD_ARC)


def odd_serial_number(data: bytes) -> bool:
    at = serial_at(data)
    if at is None or data[at] != 2:
        return False
    size = data[at + 1]
    value = int.from_bytes(data[at + 2 : at + 2 + size], "big", signed=True)
    return size > 20 or not 0 <= value <= MAX_SERIAL_NUMBER


def disagreement(data: bytes) -> str | None:
    """How the two differ in a way that is not listed above; None if they do not."""
    read, other = ours(data), library(data)
    if read is None and other is None:
        return None
    if other is None:
        again = without_unread_parts(data)
        read, other = ours(again), library(again)
        if read is None or other is None:
            return "accepted here alone"
    if read is None:
        if odd_serial_number(data) or b"\xa3\x02\x30\x00" in data:
            return None
        return "refused here alone"
    return ", ".join(unlike(read, other)) or None


def mutations(whole: bytes, random_: random.Random, count: int) -> Iterator[bytes]:
    """Yield copies of ``whole`` in which bytes are changed, removed, inserted or copied."""
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(random_.choice((1, 1, 1, 2, 3))):
            at = random_.randrange(len(data))
            match random_.randrange(8):
                case 0 | 1 | 2:
                    data[at] ^= 1 << random_.randrange(8)
                case 3:
                    data[at] = random_.choice(
                        (0, 1, 2, 5, 0x30, 0x7F, 0x80, 0xFF, data[at] + 1 & 255)
                    )
                case 4:
                    data[at] = random_.randrange(256)
                case 5:
                    del data[at : at + random_.choice((1, 2, 5))]
                case 6:
                    data[at:at] = random_.randbytes(random_.choice((1, 2)))
                case _:
                    other = random_.randrange(len(data))
                    size = random_.choice((1, 3, 8))
                    data[at : at + size] = data[other : other + size]
        yield bytes(data)


def genuine(vectors: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(vectors.glob("*/*.der"))]


def test_both_read_the_same_in_unchanged_certificates() -> None:
    for data in MADE:
        assert ours(data) is not None
        assert disagreement(data) is None


def test_both_read_the_same_in_genuine_certificates(vectors: Path) -> None:
    found = genuine(vectors)
    assert len(found) >= 9
    for data in found:
        assert ours(data) is not None
        assert disagreement(data) is None


_EXTENSION_LIST = CAS[0].ark.extensions
ARK = CAS[0].ark
TABLE: dict[str, bytes] = {
    "version 1": ARK.but(version=0, extensions=()).make(),
    "version 2": ARK.but(version=1).make(),
    "version 4": ARK.but(version=3).make(),
    "no extensions": ARK.but(extensions=()).make(),
    "duplicate extension": ARK.but(extensions=(*_EXTENSION_LIST, _EXTENSION_LIST[0])).make(),
    "serial number -1": ARK.but(serial=-1).make(),
    "serial number of 20 bytes": ARK.but(serial=(1 << 159) - 1).make(),
    "serial number of 21 bytes": ARK.but(serial=1 << 159).make(),
    "unknown critical extension": ARK.with_extension("1.2.3.4", b"x", critical=True).make(),
    "keyUsage not a BIT STRING": ARK.with_extension(KEY_USAGE, b"\xff").make(),
    "keyUsage empty": ARK.with_extension(KEY_USAGE, b"\x03\x01\0").make(),
    "decipherOnly without keyAgreement": ARK.with_extension(
        KEY_USAGE, b"\x03\x03\x07\x04\x80"
    ).make(),
    "decipherOnly with keyAgreement": ARK.with_extension(KEY_USAGE, b"\x03\x03\x07\x0c\x80").make(),
    "basicConstraints with the default written": ARK.with_extension(
        BASIC_CONSTRAINTS, der(0x30, b"\x01\x01\0")
    ).make(),
    "basicConstraints with pathLen without cA": ARK.with_extension(
        BASIC_CONSTRAINTS, der(0x30, integer(0))
    ).make(),
    "basicConstraints with a negative pathLen": ARK.with_extension(
        BASIC_CONSTRAINTS, der(0x30, b"\x01\x01\xff", integer(-1))
    ).make(),
    "a malformed key identifier": ARK.with_extension("2.5.29.14", b"\xff").make(),
    "a malformed subjectAltName": ARK.with_extension("2.5.29.17", b"\xff").make(),
    "two algorithms": ARK.but(inner=der(0x30, oid("1.2.840.113549.1.1.11"), b"\x05\0")).make(),
    "RSASSA-PSS without parameters": ARK.but(inner=der(0x30, oid("1.2.840.113549.1.1.10"))).make(),
    "trailing byte": ARK.make() + b"\0",
    "cut": ARK.make()[:-1],
    "empty": b"",
}


@pytest.mark.parametrize("case", TABLE)
def test_both_agree_on_the_table(case: str) -> None:
    assert disagreement(TABLE[case]) is None


def test_the_table_has_certificates_of_both_kinds() -> None:
    accepted = {case for case, data in TABLE.items() if ours(data) is not None}
    assert accepted == {
        "no extensions",
        "serial number of 20 bytes",
        "unknown critical extension",
        "keyUsage empty",
        "decipherOnly with keyAgreement",
        "a malformed key identifier",
        "a malformed subjectAltName",
        "two algorithms",
        "RSASSA-PSS without parameters",
    }


COUNT = sized(150, 4000)


@pytest.mark.parametrize("index", range(len(MADE)))
def test_both_agree_on_changed_certificates(index: int) -> None:
    random_ = random.Random(index)
    assert _disagreements(mutations(MADE[index], random_, COUNT), disagreement) == []


def test_both_agree_on_changed_genuine_certificates(vectors: Path) -> None:
    for index, data in enumerate(genuine(vectors)):
        random_ = random.Random(100 + index)
        assert _disagreements(mutations(data, random_, COUNT), disagreement) == []


def _disagreements(
    changed: Iterator[bytes], judge: Callable[[bytes], str | None]
) -> list[tuple[str, str]]:
    found = ((judge(data), data.hex()) for data in changed)
    return [(problem, data) for problem, data in found if problem is not None][:3]


def library_list(
    data: bytes,
) -> tuple[x509.CertificateRevocationList, list[x509.RevokedCertificate]] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = x509.load_der_x509_crl(data)
            _ = (read.issuer, read.extensions, read.last_update_utc, read.signature)
            entries = list(read)
            _ = [(each.extensions, each.revocation_date_utc) for each in entries]
    except _REFUSED:
        return None
    return None if read.next_update_utc is None else (read, entries)


def list_disagreement(data: bytes) -> str | None:
    read: RevocationList | None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = load_crl(data)
            entries = list(read.entries())
    except (FormatError, ValueError):
        read, entries = None, []
    found = library_list(data)
    if read is None:
        return None if found is None or _v1(data) else "refused here alone"
    if found is None:
        again = _sound_list(data)
        return "accepted here alone" if again == data else list_disagreement(again)
    other, theirs = found
    same = {
        "issuer": read.issuer == other.issuer,
        "times": (read.this_update, read.next_update)
        == (other.last_update_utc, other.next_update_utc),
        "signed": read.signed == other.tbs_certlist_bytes,
        "signature": read.signature == other.signature,
        "extensions": [(each.oid, each.critical) for each in read.extensions]
        == [(each.oid, each.critical) for each in other.extensions],
        "entries": [(each.serial_number, each.revocation_date) for each in entries]
        == [(each.serial_number, each.revocation_date_utc) for each in theirs],
    }
    return ", ".join(name for name, is_same in same.items() if not is_same) or None


def _v1(data: bytes) -> bool:
    """Whether this is a list of version 1 or has an empty list of entries, unlike AMD's lists."""
    tbs = structure.read(structure.Signed, data).tbs.parse(structure.TbsCertList)
    return tbs.version is None or tbs.revoked_certificates == []


def _sound_list(data: bytes) -> bytes:
    """The same list, with sound content in the places that this project does not read."""
    outer = structure.read(structure.Signed, data)
    tbs = outer.tbs.parse(structure.TbsCertList)
    tbs.signature = outer.signature_algorithm = structure.read(asn1.TLV, ALGORITHM)
    tbs.crl_extensions = None
    if tbs.revoked_certificates is not None:
        entries = [raw.parse(structure.RevokedCertificateDer) for raw in tbs.revoked_certificates]
        for entry in entries:
            entry.crl_entry_extensions = None
        tbs.revoked_certificates = [
            structure.read(asn1.TLV, structure.der_of(entry)) for entry in entries
        ]
    outer.tbs = structure.read(asn1.TLV, structure.der_of(tbs))
    return structure.der_of(outer)


@pytest.mark.parametrize("index", range(len(LISTS)))
def test_both_agree_on_revocation_lists(index: int) -> None:
    assert list_disagreement(LISTS[index]) is None
    random_ = random.Random(index)
    assert _disagreements(mutations(LISTS[index], random_, COUNT), list_disagreement) == []
