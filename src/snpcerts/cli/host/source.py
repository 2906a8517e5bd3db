# SPDX-License-Identifier: Apache-2.0
"""Where the host commands have certificates from, and what is trusted there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from snpcerts.cli.files import read_input
from snpcerts.cli.host.said import told
from snpcerts.errors import InputError

if TYPE_CHECKING:
    from snpcerts.endorsement.anchors import Anchor
    from snpcerts.host.config import Config
    from snpcerts.kds.source import CertificateSource


def open_certificate_source(
    config: Config, anchors: tuple[Anchor, ...], cache: Path | None = None
) -> CertificateSource:
    """Where certificates come from."""
    from snpcerts.kds.source import open_certificate_source

    return open_certificate_source(
        cache=cache or config.cache,
        url=config.kds_url,
        offline=config.offline,
        anchors=anchors,
        heed_revocation=True,
    )


def anchors_of(config: Config) -> tuple[Anchor, ...]:
    from snpcerts.endorsement.anchors import AMD_ANCHORS, anchor_from_certificate
    from snpcerts.endorsement.certificate import load_certificate

    if not config.anchors:
        return AMD_ANCHORS
    found: list[Anchor] = []
    for path in config.anchors:
        try:
            found.append(anchor_from_certificate(load_certificate(read_input(path), "root")))
        except InputError as error:
            named = error.message if path in error.message else f"{path}: {error.message}"
            raise InputError(named, hint=error.hint) from None
    return tuple(found)


class PatientSource:
    """A certificate source that says what it waits for."""

    def __init__(self, source: CertificateSource) -> None:
        self._source = source

    def vcek(self, *words: Any, **named: Any) -> Any:
        with told("asking for a VCEK certificate"):
            return self._source.vcek(*words, **named)

    def vlek_chain(self, *words: Any, **named: Any) -> Any:
        with told("asking for the chain of a VLEK"):
            return self._source.vlek_chain(*words, **named)

    def crl(self, *words: Any, **named: Any) -> Any:
        with told("asking for a revocation list"):
            return self._source.crl(*words, **named)

    def known_crl(self, *words: Any, **named: Any) -> Any:
        return self._source.known_crl(*words, **named)
