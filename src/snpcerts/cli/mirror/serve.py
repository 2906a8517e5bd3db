# SPDX-License-Identifier: Apache-2.0
"""``snpcerts mirror serve``: run a mirror."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import TYPE_CHECKING

import click

from snpcerts.cli.files import read_input
from snpcerts.cli.say import say_line
from snpcerts.cli.source_options import ANCHOR, anchors_of
from snpcerts.errors import InputError, UsageError
from snpcerts.kds.url import AMD_URL

if TYPE_CHECKING:
    from snpcerts.mirror.api import Tokens

DATABASE = click.option(
    "--database",
    metavar="URL",
    default="sqlite:////var/lib/snpcerts/mirror.db",
    show_default=True,
    envvar="SNPCERTS_MIRROR_DATABASE",
    help=(
        "URL of the database: sqlite:///PATH for one instance, postgresql://USER@HOST/NAME for "
        "several. To keep a password out of the process list, set the environment variable "
        "SNPCERTS_MIRROR_DATABASE instead."
    ),
)


@click.command(short_help="Serve certificates, and fetch those that are missing.")
@DATABASE
@click.option(
    "--listen",
    metavar="[HOST:]PORT",
    default="127.0.0.1:8180",
    show_default=True,
    help="Address to listen on. Port 0 selects a free port.",
)
@click.option(
    "--upstream",
    metavar="URL",
    default=AMD_URL,
    show_default=True,
    help="Key server or mirror to fetch certificates from.",
)
@ANCHOR
@click.option(
    "--gap",
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    help=(
        "Shortest time between two requests to --upstream for VCEK certificates. [default: 10 "
        "for AMD's server, 0 for any other]"
    ),
)
@click.option(
    "--patience",
    type=click.FloatRange(0, 300),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a client's request waits for a certificate that is being fetched.",
)
@click.option(
    "--unknown-chips",
    type=click.Choice(["open", "enrolled"]),
    default="open",
    show_default=True,
    help=(
        "Chips to fetch certificates for: 'open' means any chip, 'enrolled' only those of "
        "hosts that have announced themselves."
    ),
)
@click.option(
    "--budget",
    type=click.IntRange(1, 10_000),
    default=16,
    show_default=True,
    metavar="COUNT",
    help=(
        "Number of unknown chips (announced by no host) that each client address may have in "
        "the queue."
    ),
)
@click.option(
    "--agent-token-file",
    metavar="FILE",
    help=(
        "File with the tokens of the hosts' agents, one per line. The names of hosts may follow "
        "a token, which is then valid only for these hosts."
    ),
)
@click.option(
    "--admin-token-file", metavar="FILE", help="File with the operators' tokens, one per line."
)
@click.option(
    "--tls-cert", metavar="FILE", help="File with the certificate chain (PEM) to serve TLS with."
)
@click.option(
    "--tls-key",
    metavar="FILE",
    help="File with the private key (PEM) of the certificate in --tls-cert.",
)
@click.option(
    "--client-ca",
    metavar="FILE",
    help=(
        "File with CAs (PEM). A host with a client certificate from one of these CAs may "
        "announce itself."
    ),
)
@click.option(
    "--forwarded-from",
    metavar="ADDRESSES",
    help="Addresses of proxies whose X-Forwarded-For header is trusted, separated by commas.",
)
def serve(
    database: str,
    listen: str,
    upstream: str,
    anchors: tuple[str, ...],
    gap: float | None,
    patience: float,
    unknown_chips: str,
    budget: int,
    agent_token_file: str | None,
    admin_token_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    client_ca: str | None,
    forwarded_from: str | None,
) -> None:
    """Serve certificates from the database, and fetch the missing ones from AMD's server.

    The mirror runs until SIGINT or SIGTERM. Several instances can share one PostgreSQL database.
    """
    imported("snpcerts.mirror.serving")
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key must be given together")
    if client_ca is not None and tls_cert is None:
        raise UsageError("--client-ca can only be used with --tls-cert and --tls-key")
    host, port = _address(listen)
    for path in (tls_cert, tls_key, client_ca):
        if path is not None:
            read_input(path)
    from snpcerts.mirror.service import CallerLimits
    from snpcerts.mirror.serving import ServeOptions
    from snpcerts.mirror.serving import serve as run

    options = ServeOptions(
        database=database,
        host=host,
        port=port,
        upstream=upstream,
        anchors=anchors_of(anchors),
        gap=gap,
        limits=CallerLimits(patience, budget, unknown_chips == "enrolled"),
        tokens=_tokens(agent_token_file, admin_token_file),
        certificate=tls_cert,
        key=tls_key,
        client_ca=client_ca,
        forwarded_from=forwarded_from,
    )
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="snpcerts: %(levelname)s: %(message)s"
    )
    run(options, lambda url: say_line(f"serving {url}"))


def imported(module: str) -> None:
    """Import a module of the mirror. Raises :class:`UsageError`, which names the missing package,
    if a Python package is missing.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("snpcerts"):
            raise
        raise UsageError(
            f"the mirror needs the Python package {error.name.partition('.')[0]}",
            hint=(
                "install snpcerts from its .deb or .rpm package, which contains this Python "
                "package, or run pip install '.[mirror]' in a source tree"
            ),
        ) from None


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {listen!r}: expected PORT or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _tokens(agent: str | None, admin: str | None) -> Tokens:
    from snpcerts.mirror.api import Tokens

    agents, operators = _token_file(agent), _token_file(admin)
    if admin is not None and any(operators.values()):
        raise InputError(
            f"{admin}: expected only tokens, found names of hosts after an operator's token"
        )
    hosts = {token: names for token, names in agents.items() if names}
    return Tokens(tuple(agents), tuple(operators), hosts)


def _token_file(path: str | None) -> dict[str, frozenset[str]]:
    """Read a token file. Return the names of the hosts that each token is valid for, or no name for
    a token that is valid for all hosts.
    """
    if path is None:
        return {}
    try:
        lines = [line.split() for line in read_input(path).decode("ascii").splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected ASCII text, found other bytes") from None
    found: dict[str, frozenset[str]] = {}
    for token, *names in filter(None, lines):
        if token in found and bool(names) != bool(found[token]):
            raise InputError(
                f"{path}: the same token is on two lines, once with and once without names of hosts"
            )
        found[token] = found.get(token, frozenset()) | {name.lower() for name in names}
    if not found or any(len(each) < 16 for each in found):
        raise InputError(
            f"{path}: expected one token of at least 16 characters on each line",
            hint=(
                "make tokens with 'openssl rand -hex 32', and write the names of hosts after "
                "their token"
            ),
        )
    return found
