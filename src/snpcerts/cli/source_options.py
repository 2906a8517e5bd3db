# SPDX-License-Identifier: Apache-2.0
"""The options that select a command's certificate source, and the code that opens the source."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snpcerts.cli.files import read_input
from snpcerts.cli.say import present
from snpcerts.errors import InputError, UsageError
from snpcerts.printable import printable

if TYPE_CHECKING:
    from snpcerts.endorsement.anchors import Anchor
    from snpcerts.kds.source import CertificateSource


def _cache(default: str) -> Callable[..., Any]:
    return click.option(
        "--cache",
        metavar="DIR",
        help=f"Directory of the cache of verified certificates. [default: {default}]",
    )


CACHE = _cache("/var/cache/snpcerts, or snpcerts in the user's cache directory")
_CACHE_OF_HOST = _cache("/var/cache/snpcerts")
ANCHOR = click.option(
    "--anchor",
    "anchors",
    metavar="FILE",
    multiple=True,
    help="File with a root (ARK) to trust instead of AMD's roots. May be given several times.",
)
_TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(0, 86400, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help=(
        "Time limit for getting a certificate, in seconds, including the waits that the key "
        "server requires."
    ),
)
_KDS = click.option(
    "--kds",
    "url",
    metavar="URL",
    help="URL of the key server or mirror. [default: AMD's key server]",
)
_OFFLINE = click.option(
    "--offline", is_flag=True, help="Use only the cache, and send no request to a key server."
)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """The values of the source options. None, False or () means that an option was not given.

    ``timeout`` is in seconds. None means the key server client's default.
    """

    url: str | None
    cache: str | None
    offline: bool
    timeout: float | None
    anchors: tuple[str, ...]

    @contextmanager
    def open(
        self,
        anchors: Sequence[Anchor],
        notice: Callable[[str], None] | None = None,
    ) -> Iterator[CertificateSource]:
        """Open the certificate source that the options select, and close it after the block.

        When the source waits, it calls ``notice`` with the reason. The default prints the reason to
        standard error.
        """
        from snpcerts.kds.source import open_certificate_source

        source = open_certificate_source(
            cache=cache_directory(self.cache),
            url=self.url,
            offline=self.offline,
            anchors=anchors,
            timeout=self.timeout,
            notice=_tell if notice is None else notice,
            warn=lambda text: _tell(f"warning: {text}"),
        )
        try:
            yield source
        finally:
            source.close()


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add all source options to a command, which gets their values as a :class:`SourceOptions`
    named ``server``.
    """
    return _with_source(function, (_KDS, CACHE, _OFFLINE, _TIMEOUT, ANCHOR))


def source_options_of_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the source options except ``--timeout`` to a command, as :func:`source_options` does.

    Host commands use ``--timeout`` for other waits.
    """
    return _with_source(function, (_KDS, _CACHE_OF_HOST, _OFFLINE, ANCHOR))


def _with_source(
    function: Callable[..., Any], options: Sequence[Callable[..., Any]]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(
        *arguments: Any,
        url: str | None,
        cache: str | None,
        offline: bool,
        anchors: tuple[str, ...],
        **others: Any,
    ) -> Any:
        timeout = others.pop("timeout") if _TIMEOUT in options else None
        if offline and url is not None:
            raise UsageError("--offline and --kds cannot be combined")
        server = SourceOptions(url, cache, offline, timeout, anchors)
        return function(*arguments, server=server, **others)

    for option in reversed(options):
        call = option(call)
    return call


def cache_directory(given: str | None) -> Path:
    """Return the cache directory: ``given`` or, if that is None, the host's cache for root and the
    user's own cache for any other user.
    """
    if given is not None:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/cache/snpcerts")
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a path that is not absolute must be ignored.
    return Path(base if base.startswith("/") else os.path.expanduser("~/.cache"), "snpcerts")


def trusted_roots(paths: Sequence[str]) -> tuple[tuple[Anchor, bytes], ...]:
    """Read the roots (ARKs) in these files. Return each as an anchor and as the certificate's
    bytes.

    Raises :class:`InputError`, which names the file, if a file holds no ARK.
    """
    from snpcerts.endorsement.anchors import anchor_from_certificate
    from snpcerts.endorsement.certificate import load_certificate

    found: list[tuple[Anchor, bytes]] = []
    for path in paths:
        try:
            data = _root_of_chain(read_input(path))
            found.append((anchor_from_certificate(load_certificate(data, "root")), data))
        except InputError as error:
            named = error.message if error.message.startswith(path) else f"{path}: {error.message}"
            raise InputError(named, hint=error.hint) from None
    return tuple(found)


def _root_of_chain(data: bytes) -> bytes:
    """Return the ARK if ``data`` is PEM that contains one ARK and otherwise only ASKs or ASVKs,
    like AMD's cert_chain. Otherwise return ``data``. A root beside other certificates, such as a
    leaf, may have come with evidence, so it must not become an anchor.
    """
    from snpcerts.endorsement.bundle import read_bundle
    from snpcerts.endorsement.ca_name import CaRole
    from snpcerts.endorsement.sorting import sort_all

    if not data.lstrip().startswith(b"-----BEGIN CERTIFICATE-----"):
        return data
    inside = sort_all(read_bundle(data).certificates)
    roles = [None if each.authority is None else each.authority.role for each in inside]
    if len(inside) < 2 or None in roles or roles.count(CaRole.ARK) != 1:
        return data
    return inside[roles.index(CaRole.ARK)].der


def anchors_of(paths: Sequence[str]) -> tuple[Anchor, ...]:
    """Read the anchors in these files. Without a file, return the anchors for AMD's roots.

    Raises the same errors as :func:`trusted_roots`.
    """
    from snpcerts.endorsement.anchors import AMD_ANCHORS

    return tuple(anchor for anchor, _ in trusted_roots(paths)) if paths else AMD_ANCHORS


def _tell(text: str) -> None:
    present(f"snpcerts: {printable(text)}", err=True)
