# SPDX-License-Identifier: Apache-2.0
"""Reads and writes certificates, chains and revocation lists in the database.

Everything stored has been verified, because only :mod:`snpcerts.mirror.admission` creates an
:class:`Admitted`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, bindparam, delete, select, update

from snpcerts.kds.url import ChainResource, CrlResource, Resource, VcekResource
from snpcerts.mirror.database import insert
from snpcerts.mirror.tables import CERTIFICATE, NEGATIVE, ROLL_HOST


@dataclass(frozen=True, slots=True)
class Admitted:
    """A verified certificate, chain or revocation list, as the body of a response.

    ``not_before`` and ``not_after`` are seconds since the epoch.
    """

    resource: Resource
    body: bytes
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """A stored certificate, chain or revocation list, with its entity tag and expiry time."""

    body: bytes
    etag: str
    not_after: float


@dataclass(frozen=True, slots=True)
class NoCertificate:
    """Why upstream gave no certificate. This is remembered until ``until``."""

    reason: str  # not-found or refused
    problem: str
    until: float


def kind_of(resource: Resource) -> str:
    """Return the kind of a resource: ``vcek``, ``chain`` or ``crl``."""
    if isinstance(resource, VcekResource):
        return "vcek"
    return "chain" if isinstance(resource, ChainResource) else "crl"


def hwid_of(resource: Resource) -> str | None:
    """Return the chip ID of a resource, in hexadecimal; None for a chain or revocation list."""
    return resource.hwid.hex() if isinstance(resource, VcekResource) else None


def content_type(resource: Resource) -> str:
    """Return the content type that AMD's server sends for a resource."""
    if isinstance(resource, ChainResource):
        return "application/x-pem-file"
    return "application/pkix-crl" if isinstance(resource, CrlResource) else _DER


_DER = "application/octet-stream"
_BATCH = 500


# Selects the fields of :class:`StoredCertificate` for the resource in the parameter ``resource``.
BY_RESOURCE: Final = select(CERTIFICATE.c.body, CERTIFICATE.c.etag, CERTIFICATE.c.not_after).where(
    CERTIFICATE.c.resource == bindparam("resource")
)


def find(connection: Connection, resource: str) -> StoredCertificate | None:
    """Return the stored certificate for a resource's path, however old it is."""
    row = connection.execute(BY_RESOURCE, {"resource": resource}).first()
    return None if row is None else StoredCertificate(bytes(row[0]), row[1], row[2])


def find_negative(connection: Connection, resource: str, now: float) -> NoCertificate | None:
    """Return why upstream gave no certificate for a resource, if that is still remembered."""
    n = NEGATIVE.c
    row = connection.execute(
        # An entry with a future time was written before the clock jumped back.
        select(n.reason, n.problem, n.until).where(
            n.resource == resource, n.until > now, n.noted_at <= now + 1
        )
    ).first()
    return None if row is None else NoCertificate(row[0], row[1], row[2])


def put(connection: Connection, found: Admitted, *, now: float, origin: str) -> None:
    """Store a certificate in place of any older one, and forget an earlier failure to fetch it."""
    path = found.resource.path
    values = {
        "kind": kind_of(found.resource),
        "product": found.resource.product.value,
        "hwid": hwid_of(found.resource),
        "body": found.body,
        "etag": etag_of(found.body),
        "not_before": found.not_before,
        "not_after": found.not_after,
        "fetched_at": now,
        "origin": origin,
    }
    statement = insert(connection, CERTIFICATE).values(resource=path, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["resource"], set_=values))
    connection.execute(delete(NEGATIVE).where(NEGATIVE.c.resource == path))
    waiting = (ROLL_HOST.c.resource == path, ROLL_HOST.c.stored_at.is_(None))
    connection.execute(update(ROLL_HOST).where(*waiting).values(stored_at=now))


def stored_among(connection: Connection, paths: Sequence[str]) -> set[str]:
    """Return the paths in ``paths`` for which a certificate, chain or revocation list is stored."""
    c = CERTIFICATE.c.resource
    found: set[str] = set()
    for part in batches(paths):
        found |= set(connection.execute(select(c).where(c.in_(part))).scalars())
    return found


def batches(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield parts of a list of paths, each short enough for one query."""
    for start in range(0, len(paths), _BATCH):
        yield paths[start : start + _BATCH]


def etag_of(body: bytes) -> str:
    """Return the entity tag of a body, with its quotes."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'
