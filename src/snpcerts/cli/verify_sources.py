# SPDX-License-Identifier: Apache-2.0
"""Where ``snpcerts verify`` takes certificates from, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from snpcerts.cli.evidence import certificates
from snpcerts.cli.files import read_dated_input, read_input
from snpcerts.cli.say import say
from snpcerts.errors import InputError, UsageError
from snpcerts.printable import printable

if TYPE_CHECKING:
    from snpcerts.endorsement.anchors import Anchor
    from snpcerts.kds.source import CertificateSource
    from snpcerts.verify.collateral import SuppliedCrl
    from snpcerts.verify.sources import CollateralSource

ORDER = "table,certs,kds"


def trust(path: str) -> tuple[tuple[Anchor, ...], bytes]:
    """The root at ``path`` as the one anchor, and the root itself."""
    from snpcerts.endorsement.anchors import anchor_from_certificate
    from snpcerts.endorsement.certificate import load_certificate

    data = read_input(path)
    try:
        return (anchor_from_certificate(load_certificate(data, "root")),), data
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from None


def server_behind_cache(
    stack: ExitStack,
    url: str | None,
    offline: bool,
    cache: str | None,
    anchors: tuple[Anchor, ...],
) -> CertificateSource:
    """The key server behind its cache, or the cache alone."""
    # The cache of one command is that of the other.
    from snpcerts.cli.kds import cache_directory
    from snpcerts.kds.client import KdsClient
    from snpcerts.kds.source import CertificateSource
    from snpcerts.kds.store import Store
    from snpcerts.kds.url import AMD_URL

    def tell(text: str) -> None:
        say(f"snpcerts: {printable(text)}", err=True)

    client = None
    if not offline:
        client = KdsClient(AMD_URL if url is None else url, notice=tell)
        stack.callback(client.close)
    store = Store(Path(cache_directory(cache)))
    return CertificateSource(
        store, client, anchors=anchors, warn=lambda text: tell(f"warning: {text}")
    )


def _given_list(text: str) -> SuppliedCrl:
    """A list as ``vcek=FILE``, ``vlek=FILE`` or ``FILE``, whose kind is not known."""
    from snpcerts.endorsement.vek import VekKind
    from snpcerts.verify.collateral import SuppliedCrl, Supplier

    word, mark, path = text.partition("=")
    kind = next((each for each in VekKind if mark and each.value == word), None)
    if kind is None:
        path = text
    data, written = read_dated_input(path)
    # What wrote the file, wrote it when the key server gave it.
    return SuppliedCrl(data, kind, Supplier.CALLER, path, written)


def sources_in_order(
    order: str,
    certs: str | None,
    crls: Iterable[str],
    root: bytes | None,
    server: CertificateSource | None,
    at: datetime,
) -> list[CollateralSource]:
    """The sources in that order; ``root`` comes last but before the key server."""
    from snpcerts.verify.collateral import Collateral
    from snpcerts.verify.sources import OWN, Given, GivenCrls

    names = order.split(",")
    if sorted(set(names)) != sorted(names) or not set(names) <= set(ORDER.split(",")):
        raise UsageError(f"--order {order}: must be some of {ORDER}, each once")
    by_name: dict[str, list[CollateralSource]] = {"table": [OWN]}
    if certs is not None:
        by_name["certs"] = [certificates(certs)]
    if server is not None:
        from snpcerts.kds.collateral import KdsCertificates, KdsRevocationLists

        by_name["kds"] = [KdsCertificates(server, at=at), KdsRevocationLists(server, at=at)]
    sources: list[CollateralSource] = []
    lists = list(crls)
    if lists:
        sources.append(GivenCrls(map(_given_list, lists)))
    for name in names:
        sources += by_name.get(name, [])
    # The trusted root stands in for one that nobody supplied.
    if root is not None:
        after = [source for source in by_name.get("kds", []) if source in sources]
        place = sources.index(after[0]) if after else len(sources)
        sources.insert(place, Given(Collateral(ark=root)))
    return sources
