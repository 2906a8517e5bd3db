# SPDX-License-Identifier: Apache-2.0
"""Parses and checks revocation lists.

AMD publishes one list for each product and kind of leaf (VCEK, VLEK), signed by the ARK. A list
contains the serial numbers of ASKs and ASVKs; the first Genoa ASK was revoked this way. It cannot
contain leaves, because these are not issued by the ARK and all have serial number 0.

A list is believed only if the root's key signed it with the algorithm of AMD's certificates, and if
it has no unknown critical extension. Such an extension, in the list or in an entry, could reverse
the meaning (delta and indirect lists have such extensions).

Source: RFC 5280 section 5; KDS (57230) chapter 3.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat import asn1

from snpcerts.endorsement import structure
from snpcerts.endorsement.certificate import (
    UNREADABLE,
    Certificate,
    Extension,
    common_name,
    extensions_of,
    name_of,
    plainly,
    to_pem_block,
)
from snpcerts.endorsement.der import read_element
from snpcerts.endorsement.reason import Reason, ReasonCode
from snpcerts.endorsement.signature import algorithm_problem, authority_key, is_signed
from snpcerts.errors import FormatError

# AMD's lists are shorter than 1 KB. A list of this size could name about 25,000 certificates.
MAX_CRL_SIZE = 1 << 20

_PEM_MARK = b"-----BEGIN"
_PEM = re.compile(
    rb"\s*-----BEGIN X509 CRL-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END X509 CRL-----\s*"
)


@dataclass(frozen=True, slots=True)
class RevokedCertificate:
    """An entry of a revocation list: a revoked certificate's serial number, and the date of its
    revocation.
    """

    serial_number: int
    revocation_date: datetime
    extensions: tuple[Extension, ...]


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A parsed revocation list, whose signature and dates have not been checked.

    Both times are in UTC and inclusive. Two lists are equal if their bytes are equal. ``der`` is
    the whole list. ``signed``, ``inner_algorithm`` and ``outer_algorithm`` are parts of it, in DER.
    :meth:`entries` parses ``raw_entries``.
    """

    der: bytes
    issuer: x509.Name = field(compare=False)
    this_update: datetime = field(compare=False)
    next_update: datetime = field(compare=False)
    extensions: tuple[Extension, ...] = field(compare=False, repr=False)
    raw_entries: tuple[asn1.TLV, ...] = field(compare=False, repr=False)
    signed: bytes = field(compare=False, repr=False)
    inner_algorithm: bytes = field(compare=False, repr=False)
    outer_algorithm: bytes = field(compare=False, repr=False)
    signature: bytes = field(compare=False, repr=False)
    unused_bits: int = field(compare=False, repr=False)

    def __len__(self) -> int:
        """Return the number of entries in the list."""
        return len(self.raw_entries)

    def entries(self) -> Iterator[RevokedCertificate]:
        """Parse and yield the entries in order. Raises ValueError for an entry that cannot be
        read.
        """
        for raw in self.raw_entries:
            entry = raw.parse(structure.RevokedCertificateDer)
            yield RevokedCertificate(
                entry.user_certificate,
                structure.time_of(entry.revocation_date),
                extensions_of(entry.crl_entry_extensions),
            )

    def pem(self) -> bytes:
        """Return the list as one PEM block."""
        return to_pem_block(self.der, "X509 CRL")

    @property
    def issuer_common_name(self) -> str | None:
        """The common name of the list's issuer, such as ``ARK-Milan``."""
        return common_name(self.issuer)


def load_crl(data: bytes, what: str = "CRL") -> RevocationList:
    """Parse ``data``, one X.509 v2 revocation list (CRL) in DER or PEM.

    The entries are not parsed, because anyone can send a long list, and parsing its entries takes a
    hundred times as long as checking its signature. :func:`check_crl` parses the entries if the
    root signed the list. Raises :class:`FormatError` for more than 1 MiB, for extra data around the
    list, for a part that cannot be read, and for a list without nextUpdate.
    """
    der = _der_of(data, what)
    try:
        outer = structure.read(structure.Signed, der)
        tbs = outer.tbs.parse(structure.TbsCertList)
        extensions = extensions_of(tbs.crl_extensions)
        issuer = name_of(tbs.issuer)
        if tbs.revoked_certificates == []:
            raise ValueError("expected at least one entry in revokedCertificates, found none")
    except UNREADABLE as error:
        raise FormatError(what, f"not a readable revocation list: {plainly(error)}") from error
    if tbs.version != structure.V2_LIST:
        raise FormatError(what, "expected an X.509 v2 revocation list, found another version")
    if tbs.next_update is None:
        raise FormatError(
            what,
            "expected the field nextUpdate, without which the list would never expire, found none",
        )
    return RevocationList(
        der,
        issuer,
        structure.time_of(tbs.this_update),
        structure.time_of(tbs.next_update),
        extensions,
        tuple(tbs.revoked_certificates or ()),
        structure.der_of(outer.tbs),
        structure.der_of(tbs.signature),
        structure.der_of(outer.signature_algorithm),
        outer.signature.as_bytes(),
        outer.signature.padding_bits(),
    )


def bears_signature(data: bytes, root: Certificate, what: str = "CRL") -> bool:
    """Return whether the root's key signed ``data``, a revocation list in DER or PEM.

    Only the outermost structure is parsed, because parsing a long list is expensive. Raises
    :class:`FormatError` if this structure is not that of a list.
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
        raise FormatError(what, f"expected at most {MAX_CRL_SIZE} bytes, found {len(data)}")
    return _der_of_pem(data, what) if data.lstrip().startswith(_PEM_MARK) else bytes(data)


def _der_of_pem(data: bytes, what: str) -> bytes:
    match = _PEM.fullmatch(data)
    if match is None:
        raise FormatError(what, "expected exactly one PEM block of type X509 CRL and no other text")
    try:
        return base64.b64decode(re.sub(rb"[\r\n]", b"", match[1]), validate=True)
    except ValueError as error:
        raise FormatError(what, f"expected base64 in the PEM block: {error}") from error


def check_crl(
    revocation: RevocationList,
    root: Certificate,
    intermediate: Certificate | None,
    label: str,
) -> tuple[Reason, ...]:
    """Return the problems of a revocation list, apart from those that depend on the time. For a
    list without problems, return which of the chain's authorities it revokes.

    ``root`` is the ARK that should have signed the list. ``label`` is the name of ``intermediate``
    in messages, such as ASK. A revocation counts whatever its date and reason are, but only in a
    list without problems, because anyone can write a list.
    """
    doubts = tuple(_doubts(revocation, root))
    if doubts:
        return doubts
    try:
        entries = tuple(revocation.entries())
    except UNREADABLE as error:
        problem = f"the CRL's entries cannot be read: {plainly(error)}"
        return (Reason(ReasonCode.CRL_UNREADABLE, problem),)
    odd = tuple(_odd_extensions(revocation, entries))
    return odd or tuple(_revoked(revocation, entries, root, intermediate, label))


def _doubts(revocation: RevocationList, root: Certificate) -> Iterator[Reason]:
    if revocation.issuer != root.subject:
        yield Reason(
            ReasonCode.CRL_ISSUER,
            f"the CRL's issuer is {revocation.issuer_common_name!r}, "
            f"but the ARK's subject is {common_name(root.subject)!r}",
        )
        return
    if root.key_usage is None or not root.key_usage.crl_sign:
        yield Reason(ReasonCode.CRL_ISSUER, "the ARK may not sign revocation lists (keyUsage)")
    problem = algorithm_problem(revocation.inner_algorithm, revocation.outer_algorithm)
    if problem is not None:
        yield Reason(ReasonCode.CRL_SIGNATURE_ALGORITHM, f"the CRL {problem}")
    key = authority_key(root)
    if (
        key is None
        or revocation.unused_bits
        or not is_signed(revocation.signed, revocation.signature, key)
    ):
        yield Reason(ReasonCode.CRL_SIGNATURE, "the CRL is not signed by the ARK's key")


def _odd_extensions(
    revocation: RevocationList, entries: tuple[RevokedCertificate, ...]
) -> Iterator[Reason]:
    """Yield a reason for the first critical extension of the list or of an entry, because snpcerts
    supports no critical extension.
    """
    places = (
        ("the CRL", revocation.extensions),
        *((f"the CRL's entry {each.serial_number:#x}", each.extensions) for each in entries),
    )
    for place, extensions in places:
        for extension in extensions:
            if extension.critical:
                yield Reason(
                    ReasonCode.CRL_EXTENSIONS,
                    f"{place} has an unknown critical extension, {extension.oid.dotted_string}",
                )
                return


def _revoked(
    revocation: RevocationList,
    entries: tuple[RevokedCertificate, ...],
    root: Certificate,
    intermediate: Certificate | None,
    label: str,
) -> Iterator[Reason]:
    named = {each.serial_number: each for each in reversed(entries)}
    for code, name, certificate in (
        (ReasonCode.ASK_REVOKED, label, intermediate),
        (ReasonCode.ARK_REVOKED, "ARK", root),
    ):
        if certificate is None or certificate.issuer != revocation.issuer:
            continue
        entry = named.get(certificate.serial_number)
        if entry is not None:
            yield Reason(
                code,
                f"the {name} with serial number {certificate.serial_number:#x} was revoked "
                f"on {entry.revocation_date:%Y-%m-%d}",
            )


def crl_problem_at(revocation: RevocationList, at: datetime) -> Reason | None:
    """Return why the list is not current at the time ``at`` (with a time zone); None if it is
    current.
    """
    return untimely(revocation.this_update, revocation.next_update, at)


def untimely(this_update: datetime, next_update: datetime, at: datetime) -> Reason | None:
    """Return why a list with these two times is not current at ``at``; None if it is current. All
    times have a time zone.
    """
    if at < this_update:
        return Reason(
            ReasonCode.CRL_NOT_YET_VALID,
            f"the CRL is not valid before {this_update:%Y-%m-%dT%H:%M:%SZ} (checked as of "
            f"{at.isoformat()})",
        )
    if at > next_update:
        return Reason(
            ReasonCode.CRL_EXPIRED,
            f"the CRL was valid until {next_update:%Y-%m-%dT%H:%M:%SZ} (checked as of "
            f"{at.isoformat()})",
        )
    return None
