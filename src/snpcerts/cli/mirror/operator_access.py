# SPDX-License-Identifier: Apache-2.0
"""How an operator's command reaches a mirror: the mirror's URL and the operator's token."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from snpcerts.errors import RetryLaterError, UsageError

if TYPE_CHECKING:
    from snpcerts.mirror.mirror_client import MirrorClient

MIRROR = click.option(
    "--mirror",
    "url",
    metavar="URL",
    default="http://127.0.0.1:8180",
    show_default=True,
    envvar="SNPCERTS_MIRROR",
    help="URL of the mirror. The environment variable SNPCERTS_MIRROR can set it too.",
)
TOKEN_FILE = click.option(
    "--token-file",
    metavar="FILE",
    envvar="SNPCERTS_MIRROR_TOKEN_FILE",
    help=(
        "File whose first line is an operator's token. The environment variable "
        "SNPCERTS_MIRROR_TOKEN_FILE can set it too."
    ),
)


def operators_client(url: str, token_file: str | None) -> MirrorClient:
    """Return a client for the mirror at ``url``.

    Raises :class:`UsageError` if a token would cross the network without TLS.
    """
    from snpcerts.kds.url import checked_base
    from snpcerts.mirror.mirror_client import MirrorAccess, MirrorClient, sent_in_clear

    if token_file is not None and sent_in_clear(url):
        raise UsageError(
            f"--mirror {url}: expected an https:// URL, or an http:// URL of this machine, because "
            "the token must not cross the network unencrypted"
        )
    access = MirrorAccess(checked_base(url), token_file and os.path.abspath(token_file))
    return MirrorClient(access, access_hint="name the file with the token: --token-file FILE")


def unreadable() -> RetryLaterError:
    """Return the error that says that the mirror's answer cannot be read."""
    return RetryLaterError(
        "the mirror's answer cannot be read",
        hint="check that the URL points to a mirror, and that the mirror runs this release",
        code="mirror-unavailable",
    )
