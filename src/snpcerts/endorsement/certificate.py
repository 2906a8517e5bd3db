# SPDX-License-Identifier: Apache-2.0
"""Parses one X.509 certificate, completely and up front. Certificates come from untrusted hosts and
networks. The X.509 library parses many parts only on access and then raises various errors. This
module reads every part that the package uses once, so that a bad certificate causes a single
:class:`~snpcerts.errors.FormatError`, here.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import warnings

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from snpcerts.errors import FormatError

# AMD's have 1.3 to 1.7 KB, some 2.3 KB as PEM.
MAX_CERTIFICATE_SIZE = 64 << 10

_PEM_MARK = b"-----BEGIN"
_PEM = re.compile(
    rb"\s*-----BEGIN CERTIFICATE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END CERTIFICATE-----\s*"
)

# The errors that the library raises for parts it cannot read. It warns about some oddities, such as
# a country name of three letters; a process may have turned such warnings into errors.
_UNREADABLE = (
    TypeError,
    ValueError,
    Warning,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

_SERIAL_WARNING = "Parsed a serial number which wasn't positive"
_SERIAL_FILTER = (
    "ignore",
    re.compile(_SERIAL_WARNING, re.IGNORECASE),
    CryptographyDeprecationWarning,
    None,
    0,
)
_serial_warning_lock = threading.Lock()


def _accept_serial_zero() -> None:
    """Suppress the library's warning about the serial number 0, which every AMD leaf has. One
    filter, for this message only, is inserted before the process's other warning filters and stays
    there: ``warnings.catch_warnings`` would restore an old state of all filters while other threads
    use them. It is inserted again if other code, such as a test runner, has put its own filter
    first.
    """
    with _serial_warning_lock:
        if next(iter(warnings.filters), None) != _SERIAL_FILTER:
            warnings.filterwarnings(
                "ignore", message=_SERIAL_WARNING, category=CryptographyDeprecationWarning
            )


def load_certificate(data: bytes, what: str) -> x509.Certificate:
    """Parse ``data``, one X.509 version 3 certificate in DER or PEM.

    ``what`` names it in errors ("VCEK"). Only white space may surround a PEM block. Raises
    :class:`FormatError` for more than 64 KiB, for bytes before or after the certificate, and for a
    certificate of which any part cannot be read.
    """
    if len(data) > MAX_CERTIFICATE_SIZE:
        raise FormatError(
            what, f"{len(data)} bytes, a certificate has at most {MAX_CERTIFICATE_SIZE}"
        )
    der = _der_of_pem(data, what) if data.lstrip().startswith(_PEM_MARK) else data
    _accept_serial_zero()
    try:
        certificate = x509.load_der_x509_certificate(der)
        version = certificate.version
        _read_lazy_parts(certificate)
    except _UNREADABLE as error:
        raise FormatError(what, f"not a readable X.509 certificate: {error}") from error
    if version is not x509.Version.v3:
        raise FormatError(what, f"X.509 version is {version.name}, must be v3")
    return certificate


def _der_of_pem(data: bytes, what: str) -> bytes:
    match = _PEM.fullmatch(data)
    if match is None:
        raise FormatError(
            what,
            "PEM must be exactly one CERTIFICATE block",
            hint="split a chain into one file or table entry per certificate",
        )
    try:
        return base64.b64decode(re.sub(rb"[\r\n]", b"", match[1]), validate=True)
    except binascii.Error as error:
        raise FormatError(what, f"PEM body is not base64: {error}") from error


def _read_lazy_parts(certificate: x509.Certificate) -> None:
    """Read each part that is used later, to raise its errors now."""
    _ = (
        certificate.subject,
        certificate.issuer,
        certificate.extensions,
        certificate.public_key(),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def common_name(name: x509.Name) -> str | None:
    """The name's common name (CN), or None if it has none or more than one."""
    found = [attribute.value for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else None
