# SPDX-License-Identifier: Apache-2.0
"""Parses one X.509 certificate completely, before any of it is used.

Certificates come from untrusted hosts and networks. This module parses every part that the package
uses, except AMD's extensions, so that a malformed certificate causes a
:class:`~snpcerts.errors.FormatError` here and not later.

:mod:`snpcerts.endorsement.structure` declares the structures of a certificate, and says why
``cryptography.x509`` does not load them. That library does parse the keys. Of the extensions,
basicConstraints and keyUsage are parsed, and all others (key identifiers, locations of revocation
lists) stay bytes. :mod:`snpcerts.endorsement.vek` parses AMD's extensions.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import ExtensionOID, NameOID

from snpcerts.endorsement import structure
from snpcerts.errors import FormatError

# AMD's certificates are 1.3 to 1.7 KB long, or about 2.3 KB as PEM.
MAX_CERTIFICATE_SIZE = 64 << 10

_PEM_MARK = b"-----BEGIN"
_PEM = re.compile(
    rb"\s*-----BEGIN CERTIFICATE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END CERTIFICATE-----\s*"
)
_PEM_WIDTH = 64

# The errors that the library raises for parts that it cannot read. It only warns about some
# oddities, such as a country name of three letters, but a process may turn warnings into errors.
UNREADABLE = (TypeError, ValueError, Warning, UnsupportedAlgorithm)

# RFC 5280: serial numbers are positive and have at most 20 bytes. AMD's leaf certificates have 0.
MAX_SERIAL_NUMBER = (1 << 159) - 1

# Names up to this size are cached, because all certificates of a product share them.
_SHORT_NAME = 1 << 10

_BASIC_CONSTRAINTS = ExtensionOID.BASIC_CONSTRAINTS
_KEY_USAGE = ExtensionOID.KEY_USAGE

# Bits of keyUsage, counted as in RFC 5280 section 4.2.1.3: the first is the most significant.
_KEY_AGREEMENT, _KEY_CERT_SIGN, _CRL_SIGN, _ENCIPHER_ONLY, _DECIPHER_ONLY = 4, 5, 6, 7, 8


class Extension(NamedTuple):
    """An extension of a certificate. ``value`` is the content of the extension's OCTET STRING."""

    oid: x509.ObjectIdentifier
    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class BasicConstraints:
    """Whether the certificate belongs to an authority. A ``path_length`` of None means no limit."""

    ca: bool
    path_length: int | None


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """The bits of a certificate's key usage that snpcerts checks."""

    key_cert_sign: bool
    crl_sign: bool


@dataclass(frozen=True, slots=True)
class Certificate:
    """A parsed X.509 version 3 certificate. It has not been verified.

    Two certificates are equal if their bytes are equal. An attribute that
    ``cryptography.x509.Certificate`` has too means the same as there. ``der`` is the whole
    certificate. ``tbs_certificate_bytes``, ``inner_algorithm`` (inside the signed part) and
    ``outer_algorithm`` are parts of it, in DER. ``unused_bits`` belongs to the signature's BIT
    STRING; only 0 is correct.
    """

    der: bytes
    serial_number: int = field(compare=False)
    issuer: x509.Name = field(compare=False)
    subject: x509.Name = field(compare=False)
    not_valid_before_utc: datetime = field(compare=False)
    not_valid_after_utc: datetime = field(compare=False)
    subject_common_name: str | None = field(compare=False, repr=False)
    key: PublicKeyTypes = field(compare=False, repr=False)
    extensions: tuple[Extension, ...] = field(compare=False, repr=False)
    basic_constraints: BasicConstraints | None = field(compare=False, repr=False)
    key_usage: KeyUsage | None = field(compare=False, repr=False)
    tbs_certificate_bytes: bytes = field(compare=False, repr=False)
    inner_algorithm: bytes = field(compare=False, repr=False)
    outer_algorithm: bytes = field(compare=False, repr=False)
    signature: bytes = field(compare=False, repr=False)
    unused_bits: int = field(compare=False, repr=False)

    def __reduce__(self) -> tuple[Callable[[bytes, str], Certificate], tuple[bytes, str]]:
        """Pickle the bytes and parse them again, because the library's objects cannot be
        pickled.
        """
        return load_certificate, (self.der, "certificate")

    def public_key(self) -> PublicKeyTypes:
        """Return the public key that the certificate certifies."""
        return self.key

    def public_bytes(self, encoding: Encoding) -> bytes:
        """Return the certificate in DER or PEM."""
        if encoding is Encoding.DER:
            return self.der
        if encoding is Encoding.PEM:
            return to_pem_block(self.der, "CERTIFICATE")
        raise ValueError(f"encoding of a certificate: expected DER or PEM, found {encoding}")


def load_certificate(data: bytes, what: str) -> Certificate:
    """Parse ``data``, one X.509 version 3 certificate in DER or PEM.

    ``what`` names the certificate in errors, as in "VCEK". Only white space may surround a PEM
    block. Raises :class:`FormatError` for more than 64 KiB, for bytes before or after the
    certificate, for a duplicate extension, and for any part that cannot be read.
    """
    if len(data) > MAX_CERTIFICATE_SIZE:
        raise FormatError(
            what, (f"expected at most {MAX_CERTIFICATE_SIZE} bytes, found {len(data)}")
        )
    der = _der_of_pem(data, what) if data.lstrip().startswith(_PEM_MARK) else bytes(data)
    try:
        outer = structure.read(structure.Signed, der)
        tbs = outer.tbs.parse(structure.TbsCertificate)
        if tbs.version == structure.V3:
            return _certificate(der, outer, tbs)
    except UNREADABLE as error:
        raise FormatError(what, f"not a readable X.509 certificate: {plainly(error)}") from error
    raise FormatError(what, f"expected X.509 v3, found v{tbs.version + 1}")


def _certificate(der: bytes, outer: structure.Signed, tbs: structure.TbsCertificate) -> Certificate:
    if not 0 <= tbs.serial_number <= MAX_SERIAL_NUMBER:
        raise ValueError("the serial number is negative, or has more than 20 bytes")
    extensions = extensions_of(tbs.extensions)
    values = {oid: value for oid, _, value in extensions}
    constraints, usage = values.get(_BASIC_CONSTRAINTS), values.get(_KEY_USAGE)
    subject, subject_common_name = _named(tbs.subject)
    return Certificate(
        der,
        tbs.serial_number,
        name_of(tbs.issuer),
        subject,
        structure.time_of(tbs.validity.not_before),
        structure.time_of(tbs.validity.not_after),
        subject_common_name,
        _key(tbs.subject_public_key_info),
        extensions,
        None if constraints is None else _read_basic_constraints(constraints),
        None if usage is None else _read_key_usage(usage),
        structure.der_of(outer.tbs),
        structure.der_of(tbs.signature),
        structure.der_of(outer.signature_algorithm),
        outer.signature.as_bytes(),
        outer.signature.padding_bits(),
    )


def extensions_of(found: list[structure.ExtensionDer] | None) -> tuple[Extension, ...]:
    """Return the extensions of a certificate, of a revocation list, or of one of its entries.

    Raises ValueError if an extension occurs twice, and if the field is present but empty (RFC 5280
    section 4.2).
    """
    if found is None:
        return ()
    extensions = tuple(Extension(each.extn_id, each.critical, each.extn_value) for each in found)
    if not extensions:
        raise ValueError("the list of extensions is empty")
    if len({oid for oid, _, _ in extensions}) < len(extensions):
        seen: set[x509.ObjectIdentifier] = set()
        for oid, _, _ in extensions:
            if oid in seen:
                raise ValueError(f"the extension {oid.dotted_string} occurs twice")
            seen.add(oid)
    return extensions


def name_of(part: asn1.TLV) -> x509.Name:
    """Parse a distinguished name. Raises ValueError if it is malformed."""
    return _named(part)[0]


def _named(part: asn1.TLV) -> tuple[x509.Name, str | None]:
    """Parse a distinguished name. Return the name and its common name, which is None if there is
    not exactly one.
    """
    if len(part.data) > _SHORT_NAME:
        name = structure.name_of(part)
        return name, common_name(name)
    return _known_name(structure.der_of(part))


@functools.lru_cache(maxsize=64)
def _known_name(der: bytes) -> tuple[x509.Name, str | None]:
    name = structure.read(x509.Name, der)
    return name, common_name(name)


def _key(part: asn1.TLV) -> PublicKeyTypes:
    # The library would also accept a bare RSA key.
    part.parse(structure.SubjectPublicKeyInfo)
    return load_der_public_key(structure.der_of(part))


@functools.lru_cache(maxsize=16)  # all authorities have the same few values
def _read_basic_constraints(value: bytes) -> BasicConstraints:
    read = structure.read(structure.BasicConstraintsDer, value)
    length = read.path_len_constraint
    if length is not None and (length < 0 or not read.ca):
        raise ValueError(
            "basicConstraints has a negative path length, or a path length although the "
            "certificate is not a CA's"
        )
    return BasicConstraints(read.ca, length)


@functools.lru_cache(maxsize=16)
def _read_key_usage(value: bytes) -> KeyUsage:
    bits = structure.read(asn1.BitString, value)
    octets, size = bits.as_bytes(), 8 * len(bits.as_bytes()) - bits.padding_bits()

    def has(bit: int) -> bool:
        return bit < size and bool(octets[bit // 8] & 0x80 >> bit % 8)

    if not has(_KEY_AGREEMENT) and (has(_ENCIPHER_ONLY) or has(_DECIPHER_ONLY)):
        raise ValueError("keyUsage sets encipherOnly or decipherOnly without keyAgreement")
    return KeyUsage(has(_KEY_CERT_SIGN), has(_CRL_SIGN))


_KIND = re.compile(r"ParseError \{ kind: (\w+)")
_PLAIN = {
    "ShortData": "the data ends too early",
    "ExtraData": "extra bytes follow the end of the data",
    "UnexpectedTag": "a part has the wrong type",
    "InvalidLength": "a length is wrong",
    "EncodedDefault": "a default value is encoded, which DER forbids",
    "OidTooLong": "an object identifier is too long",
}


def plainly(error: BaseException) -> str:
    """Return the library's error about malformed DER in plain words."""
    kind = _KIND.search(str(error))
    if kind is None:
        return str(error) or type(error).__name__
    return _PLAIN.get(kind[1], "a value is invalid")


def _der_of_pem(data: bytes, what: str) -> bytes:
    match = _PEM.fullmatch(data)
    if match is None:
        raise FormatError(
            what,
            "expected exactly one PEM block of type CERTIFICATE and no other text",
            hint="split the chain: use a separate file or table entry for each certificate",
        )
    try:
        return base64.b64decode(re.sub(rb"[\r\n]", b"", match[1]), validate=True)
    except binascii.Error as error:
        raise FormatError(what, f"expected base64 in the PEM block: {error}") from error


def to_pem_block(der: bytes, label: str) -> bytes:
    """Return DER as a PEM block with this label and lines of 64 characters (RFC 7468)."""
    body = base64.b64encode(der)
    lines = [body[at : at + _PEM_WIDTH] for at in range(0, len(body), _PEM_WIDTH)]
    mark = label.encode("ascii")
    return b"\n".join(
        (b"-----BEGIN " + mark + b"-----", *lines, b"-----END " + mark + b"-----", b"")
    )


def common_name(name: x509.Name) -> str | None:
    """Return the common name (CN) in a distinguished name; None if there is not exactly one."""
    found = [attribute.value for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else None
