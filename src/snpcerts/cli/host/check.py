# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host check``: check whether this machine can serve certificates."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING

import click

from snpcerts.cli.host.host_source import source_of_host
from snpcerts.cli.host.options import Host, with_host
from snpcerts.cli.say import present, say
from snpcerts.cli.signals import ends_cleanly
from snpcerts.cli.source_options import anchors_of
from snpcerts.temporary_directory import temporary_directory

if TYPE_CHECKING:
    from snpcerts.host.config import Config
    from snpcerts.host.host_check import Finding


@click.command(short_help="Check whether this machine can serve certificates.")
@with_host
@click.option("--online", is_flag=True, help="Also check whether the key server answers.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def check(host: Host, online: bool, as_json: bool) -> None:
    """Check whether this machine can serve certificates. Print what is missing and how to provide
    it.

    The command changes nothing. Exit codes: 0 no check failed, 1 a check failed.
    """
    from snpcerts.host import host_check as checks

    lines = findings(host)
    config = host.config()
    if online:
        lines.append(checks.key_server(lambda: _ask_key_server(config)))
    if as_json:
        say(
            json.dumps(
                {"passed": checks.passed(lines), "checks": [each.to_json() for each in lines]}
            )
        )
    else:
        for line in lines:
            present(str(line))
        present(checks.summary(lines))
    if not checks.passed(lines):
        click.get_current_context().exit(1)


def findings(host: Host) -> list[Finding]:
    """Return the findings of all checks that do not need the key server."""
    from snpcerts.host import host_check as checks
    from snpcerts.vmm.enable import supports_req_certs
    from snpcerts.vmm.preload import shim_library

    config = host.config()
    return [
        checks.kernel(platform.release()),
        *checks.faults(platform.release()),
        checks.kvm(supports_req_certs),
        checks.firmware(lambda: host.firmware(config)),
        *checks.files(config),
        checks.cache(config.cache),
        checks.shim(shim_library),
    ]


def _ask_key_server(config: Config) -> str:
    from snpcerts.endorsement.vek import VekKind
    from snpcerts.host.host_processor import product_of_host

    if config.offline:
        return "no request was sent, because the configuration sets offline = true"
    product = config.product or product_of_host()
    # Use an empty cache, so that the answer comes from the key server.
    with ends_cleanly(), temporary_directory("check") as folder:
        source = source_of_host(config, anchors_of(config.anchors), cache=folder)
        source.chain(product, VekKind.VLEK)
    return f"sent a trusted chain for {product.value}"
