# SPDX-License-Identifier: Apache-2.0
"""Revocation lists: what an ARK has revoked, and whether to believe a list.

AMD publishes one list per product and kind (VCEK, VLEK), signed by the ARK. It contains serial
numbers of intermediates; the first Genoa ASK was revoked this way. It cannot name leaves:
intermediates issue them, and all have serial number 0.

A list is believed only if the root's key signed it, with the algorithm of AMD's certificates, and
it has no unknown critical extension. Such an extension, of the list or of an entry, could reverse
its meaning (delta and indirect lists have them).

Source: RFC 5280 section 5; KDS (57230) chapter 3.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.endorsement.certificate import common_name
from snpcerts.endorsement.der import INTEGER, read_element
from snpcerts.endorsement.reason import Reason, ReasonCode
from snpcerts.endorsement.signature import algorithm_problem, authority_key, is_signed
from snpcerts.errors import FormatError

# AMD's have less than 1 KB. One of this size could name some 25,000 certificates.
MAX_CRL_SIZE = 1 << 20

_PEM_MARK = b"-----BEGIN"
_PEM = re.compile(
    rb"\s*-----BEGIN X509 CRL-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END X509 CRL-----\s*"
)
_UNREADABLE = (
    TypeError,
    ValueError,
    Warning,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_V2 = b"\x01"


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A parsed list, not yet judged; times in UTC, both inclusive."""

    crl: x509.CertificateRevocationList
    this_update: datetime
    next_update: datetime
    inner_algorithm: bytes
    outer_algorithm: bytes
    unused_bits: int

    @property
    def issuer_common_name(self) -> str | None:
        """The common name of its issuer, for example ``ARK-Milan``."""
        return common_name(self.crl.issuer)


def load_crl(data: bytes, what: str = "CRL") -> RevocationList:
    """Parse ``data``, one revocation list (X.509 version 2) in DER or PEM. The entries are not
    parsed: anyone can send a long list, and parsing one takes a hundred times as long as checking
    its signature. :func:`check_crl` parses them if the root signed the list. Raises
    :class:`FormatError` for more than 1 MiB, for extra data around the list, for a part that cannot
    be read, and for a list without nextUpdate.
    """
    der = _der_of(data, what)
    try:
        crl = x509.load_der_x509_crl(der)
        this_update, next_update = crl.last_update_utc, crl.next_update_utc
        _ = (crl.issuer, crl.extensions, crl.signature)
        signed = crl.tbs_certlist_bytes
    except _UNREADABLE as error:
        raise FormatError(what, f"not a readable revocation list: {error}") from error
    if next_update is None:
        raise FormatError(what, "has no nextUpdate, so nothing says when it expires")
    return RevocationList(crl, this_update, next_update, *_anatomy(crl, signed, what))


def bears_signature(data: bytes, root: x509.Certificate, what: str = "CRL") -> bool:
    """Whether the root's key signed ``data``, a list in DER or PEM; parses nothing else. For lists
    so long that parsing them is expensive. Raises :class:`FormatError` if the outermost structure
    is not a list's.
    """
    whole = read_element(_der_of(data, what), 0, what).content
    signed = read_element(whole, 0, what)
    algorithm = read_element(whole, signed.end, what)
    signature = read_element(whole, algorithm.end, what).content
    key = authority_key(root)
    return (
        key is not None
        and signature.startswith(b"\0")
        and is_signed(whole[signed.start : signed.end], signature[1:], key)
    )


def _der_of(data: bytes, what: str) -> bytes:
    if len(data) > MAX_CRL_SIZE:
        raise FormatError(what, f"{len(data)} bytes, a list has at most {MAX_CRL_SIZE}")
    return _der_of_pem(data, what) if data.lstrip().startswith(_PEM_MARK) else data


def _der_of_pem(data: bytes, what: str) -> bytes:
    match = _PEM.fullmatch(data)
    if match is None:
        raise FormatError(what, "PEM must be exactly one X509 CRL block")
    try:
        return base64.b64decode(re.sub(rb"[\r\n]", b"", match[1]), validate=True)
    except ValueError as error:
        raise FormatError(what, f"PEM body is not base64: {error}") from error


def _anatomy(
    crl: x509.CertificateRevocationList, signed: bytes, what: str
) -> tuple[bytes, bytes, int]:
    """Both AlgorithmIdentifiers, and the signature's count of unused bits.

    RFC 5280 section 5.1: CertificateList is {tbsCertList, signatureAlgorithm,
    signatureValue}; tbsCertList of version 2 starts with version and signature.
    """
    whole = read_element(crl.public_bytes(Encoding.DER), 0, what).content
    part = read_element(whole, 0, what)
    outer = read_element(whole, part.end, what)
    signature = read_element(whole, outer.end, what)
    content = read_element(signed, 0, what).content
    version = read_element(content, 0, what)
    if version.tag != INTEGER or version.content != _V2:
        raise FormatError(what, "is not of X.509 version 2")
    inner = read_element(content, version.end, what)
    return (
        content[inner.start : inner.end],
        whole[outer.start : outer.end],
        signature.content[0] if signature.content else 0,
    )


def check_crl(
    revocation: RevocationList,
    root: x509.Certificate,
    intermediate: x509.Certificate | None,
    label: str,
) -> tuple[Reason, ...]:
    """Problems that do not depend on the time, and what the list revokes. ``root`` is the ARK that
    should have signed it, ``label`` the intermediate's name. A revocation counts whatever its date
    and reason, but only in a believed list: anyone can write a list.
    """
    doubts = tuple(_doubts(revocation, root))
    if doubts:
        return doubts
    try:
        odd = tuple(_odd_extensions(revocation.crl))
        return odd or tuple(_revoked(revocation.crl, root, intermediate, label))
    except _UNREADABLE as error:
        return (Reason(ReasonCode.CRL_UNREADABLE, f"the CRL's entries cannot be read: {error}"),)


def _doubts(revocation: RevocationList, root: x509.Certificate) -> Iterator[Reason]:
    crl = revocation.crl
    if crl.issuer != root.subject:
        yield Reason(
            ReasonCode.CRL_ISSUER,
            f"the CRL's issuer is {revocation.issuer_common_name!r}, "
            f"the ARK's subject is {common_name(root.subject)!r}",
        )
        return
    usage = _key_usage(root)
    if usage is None or not usage.crl_sign:
        yield Reason(ReasonCode.CRL_ISSUER, "the ARK may not sign revocation lists (keyUsage)")
    problem = algorithm_problem(revocation.inner_algorithm, revocation.outer_algorithm)
    if problem is not None:
        yield Reason(ReasonCode.CRL_SIGNATURE_ALGORITHM, f"the CRL {problem}")
    key = authority_key(root)
    if (
        key is None
        or revocation.unused_bits
        or not is_signed(crl.tbs_certlist_bytes, crl.signature, key)
    ):
        yield Reason(ReasonCode.CRL_SIGNATURE, "the CRL is not signed by the ARK's key")


def _odd_extensions(crl: x509.CertificateRevocationList) -> Iterator[Reason]:
    """The first critical extension, of the list or of an entry; snpcerts knows none."""
    for place, extensions in _all_extensions(crl):
        for extension in extensions:
            if extension.critical:
                yield Reason(
                    ReasonCode.CRL_EXTENSIONS,
                    f"{place} has a critical extension {extension.oid.dotted_string} that "
                    "snpcerts does not know",
                )
                return


def _key_usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.KeyUsage):
            return extension.value
    return None


def _all_extensions(
    crl: x509.CertificateRevocationList,
) -> Iterator[tuple[str, x509.Extensions]]:
    yield "the CRL", crl.extensions
    for entry in crl:
        yield f"the CRL's entry {entry.serial_number:#x}", entry.extensions


def _revoked(
    crl: x509.CertificateRevocationList,
    root: x509.Certificate,
    intermediate: x509.Certificate | None,
    label: str,
) -> Iterator[Reason]:
    for code, name, certificate in (
        (ReasonCode.ASK_REVOKED, label, intermediate),
        (ReasonCode.ARK_REVOKED, "ARK", root),
    ):
        if certificate is None or certificate.issuer != crl.issuer:
            continue
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if entry is not None:
            yield Reason(
                code,
                f"the {name} with serial number {certificate.serial_number:#x} was revoked "
                f"on {entry.revocation_date_utc:%Y-%m-%d}",
            )


def crl_problem_at(revocation: RevocationList, at: datetime) -> Reason | None:
    """Problems of the list at that time, which has a time zone."""
    return untimely(revocation.this_update, revocation.next_update, at)


def untimely(this_update: datetime, next_update: datetime, at: datetime) -> Reason | None:
    """Problems at that time of a list with these two times; all have a time zone."""
    if at < this_update:
        return Reason(
            ReasonCode.CRL_NOT_YET_VALID,
            f"the CRL is valid from {this_update:%Y-%m-%dT%H:%M:%SZ}, judged at {at.isoformat()}",
        )
    if at > next_update:
        return Reason(
            ReasonCode.CRL_EXPIRED,
            f"the CRL was valid until {next_update:%Y-%m-%dT%H:%M:%SZ}, judged at {at.isoformat()}",
        )
    return None
