# SPDX-License-Identifier: Apache-2.0
"""The certificate source of the host commands."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from snpcerts.cli.host.output import show_progress

if TYPE_CHECKING:
    from snpcerts.endorsement.anchors import Anchor
    from snpcerts.host.config import Config
    from snpcerts.kds.source import CertificateSource


def source_of_host(
    config: Config,
    anchors: Sequence[Anchor],
    *,
    cache: Path | None = None,
    progress: bool = False,
) -> CertificateSource:
    """Return this host's certificate source. With ``progress``, the source reports what it waits
    for.
    """
    from snpcerts.kds.source import open_certificate_source

    return open_certificate_source(
        cache=cache or config.cache,
        url=config.kds_url,
        offline=config.offline,
        anchors=anchors,
        heed_revocation=True,
        progress=show_progress if progress else _silent,
    )


def _silent(_doing: str) -> AbstractContextManager[None]:
    return nullcontext()
