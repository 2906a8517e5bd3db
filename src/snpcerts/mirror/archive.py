# SPDX-License-Identifier: Apache-2.0
"""Writes the mirror's certificates to files and reads such files, for networks without access to
AMD.

The layout is that of the cache of :mod:`snpcerts.kds.store`, whose ``vcek`` directory is the
offline store of the trustee verifier. The name of a VCEK's file does not contain the product, which
is read from the certificate instead. An archive may come from anywhere, so its files are verified
in the same way as answers from the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final

from sqlalchemy import select

from snpcerts.abi.product import Product
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import FormatError, SnpCertsError
from snpcerts.kds.body import ChainPair, read_chain
from snpcerts.kds.errors import KdsUntrustedError
from snpcerts.kds.store import Store, resource_at
from snpcerts.kds.url import ChainResource, CrlResource, Resource, parse_target
from snpcerts.mirror import stored
from snpcerts.mirror.admission import Admission, chain_of
from snpcerts.mirror.database import MirrorDatabase
from snpcerts.mirror.stored import Admitted
from snpcerts.mirror.tables import CERTIFICATE, QUEUE

_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True)
class ArchiveFinding:
    """One file of an import. ``problem`` says why the file was refused; it is None if the file was
    stored.
    """

    place: str
    problem: str | None


def export(database: MirrorDatabase, folder: Path, *, product: Product | None = None) -> int:
    """Write all stored certificates, chains and revocation lists, or those for ``product``, into a
    directory. Return the number of files.

    Existing files with other content are replaced. Raises :class:`CacheError` for a file that
    cannot be written, and the errors of the database.
    """
    archive = Store(folder)
    count = 0
    last = ""
    c = CERTIFICATE.c
    while True:
        query = select(c.resource, c.body).where(c.resource > last)
        if product is not None:
            query = query.where(c.product == product.value)
        with database.read() as connection:
            rows = connection.execute(query.order_by(c.resource).limit(_AT_ONCE)).all()
        if not rows:
            return count
        for row in rows:
            resource = parse_target(row.resource)
            archive.write(resource, bytes(row.body))
            count += 1
        last = rows[-1].resource


def import_archive(
    database: MirrorDatabase, folder: Path, admission: Admission
) -> Iterator[ArchiveFinding]:
    """Verify the files in a directory, and store those that verify. Yield a finding for each file.

    Chains come first, because revocation lists and VCEKs are verified with a chain: the archive's
    or, if the archive has none, the stored one. Raises :class:`CacheError` for a directory that
    cannot be listed.
    """
    archive = Store(folder)
    at = datetime.now(UTC)
    chains: dict[ChainResource, ChainPair] = {}
    batch: list[Admitted] = []
    for place in archive.places():
        try:
            admitted = _admit(database, archive, place, admission, chains, at)
        except SnpCertsError as error:
            yield ArchiveFinding(str(place), str(error))
            continue
        batch.append(admitted)
        yield ArchiveFinding(str(place), None)
        if len(batch) >= _AT_ONCE:
            _put(database, batch)
            batch = []
    _put(database, batch)


def _admit(
    database: MirrorDatabase,
    archive: Store,
    place: PurePosixPath,
    admission: Admission,
    chains: dict[ChainResource, ChainPair],
    at: datetime,
) -> Admitted:
    body = archive.read_place(place)
    if body is None:
        raise FormatError(str(place), "the file no longer exists")
    problems: list[SnpCertsError] = []
    for product in Product:
        resource = resource_at(place, product)
        if resource is None:
            continue
        try:
            return _verified(database, resource, body, admission, chains, at)
        except (KdsUntrustedError, FormatError) as error:
            problems.append(error)
    if not problems:
        raise FormatError(
            str(place),
            "expected the name of a certificate, chain or revocation list, found another name",
        )
    raise problems[0]


def _verified(
    database: MirrorDatabase,
    resource: Resource,
    body: bytes,
    admission: Admission,
    chains: dict[ChainResource, ChainPair],
    at: datetime,
) -> Admitted:
    if isinstance(resource, ChainResource):
        found = admission.chain(resource, body, at)
        chains[resource] = read_chain(found.body)
        return found
    above = chain_of(resource)
    pair = chains.get(above)
    if pair is None:
        pair = chains[above] = _chain(database, above, admission, at)
    before = _stored(database, resource)
    if isinstance(resource, CrlResource):
        return admission.crl(resource, body, pair, at, before)
    return admission.vcek(resource, body, pair, at, before)


def _chain(
    database: MirrorDatabase, resource: ChainResource, admission: Admission, at: datetime
) -> ChainPair:
    body = _stored(database, resource)
    if body is None:
        kind = "VLEK" if resource.kind is VekKind.VLEK else "VCEK"
        raise KdsUntrustedError(
            f"{resource.product.value}: neither the archive nor the mirror has a {kind} chain",
            hint="add the chain to the archive, as chain/PRODUCT/vcek.pem or vlek.pem",
        )
    admission.chain(resource, body, at)
    return read_chain(body)


def _stored(database: MirrorDatabase, resource: Resource) -> bytes | None:
    with database.read() as connection:
        found = stored.find(connection, resource.path)
    return None if found is None else found.body


def _put(database: MirrorDatabase, batch: list[Admitted]) -> None:
    if not batch:
        return
    with database.write() as connection:
        now = database.now(connection)
        for each in batch:
            stored.put(connection, each, now=now, origin="import")
            connection.execute(QUEUE.delete().where(QUEUE.c.resource == each.resource.path))
            database.notify(connection, each.resource.path)
