# SPDX-License-Identifier: Apache-2.0
"""How an operator's command reaches a mirror: its URL and a token."""

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
    help="The mirror's URL. The variable SNPCERTS_MIRROR also sets it.",
)
TOKEN_FILE = click.option(
    "--token-file",
    metavar="FILE",
    envvar="SNPCERTS_MIRROR_TOKEN_FILE",
    help=(
        "A file whose first line is an operator's token. The variable "
        "SNPCERTS_MIRROR_TOKEN_FILE also sets it."
    ),
)


def operators_client(url: str, token_file: str | None) -> MirrorClient:
    """Return a client of the mirror.

    Raises :class:`UsageError` if a token would cross the network without TLS.
    """
    from snpcerts.kds.url import checked_base
    from snpcerts.mirror.mirror_client import MirrorAccess, MirrorClient, sent_in_clear

    if token_file is not None and sent_in_clear(url):
        raise UsageError(f"--mirror {url}: a token is sent only over https://, or to this machine")
    access = MirrorAccess(checked_base(url), token_file and os.path.abspath(token_file))
    return MirrorClient(access, access_hint="give the file that holds the token with --token-file")


def unreadable() -> RetryLaterError:
    """Return the error for an answer that is not a mirror's."""
    return RetryLaterError(
        "the mirror's answer cannot be read",
        hint="check that the URL points to a mirror, and that the mirror runs this release",
        code="mirror-unavailable",
    )
