# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host``: the agent of an SNP host, and firmware commands that keep the certificate
files in step.

``check``, ``status`` and ``sync`` have the commands with these names. ``change`` has ``commit``,
``set-config`` and ``load-vlek``; ``prove`` has ``prove-key``; ``prove_host`` has ``prove``;
``install`` has ``install`` and ``uninstall``. ``options`` has the options of all host commands;
``host_source`` opens a host command's certificate source; ``output`` prints. Imports ``cli``,
``host``, ``vmm``, ``kds``, ``certfile``, ``endorsement`` and ``abi``.
"""

from __future__ import annotations

import click

from snpcerts.cli.host.change import commit, load_vlek, set_config
from snpcerts.cli.host.check import check
from snpcerts.cli.host.install import install, uninstall
from snpcerts.cli.host.prove import prove_key
from snpcerts.cli.host.prove_host import prove_host
from snpcerts.cli.host.status import status
from snpcerts.cli.host.sync import sync


@click.group()
def command() -> None:
    """Keep this host's certificate files in step with the key that its firmware signs with.

    Every command that changes the signing key first makes a plan and fetches the new key's
    certificates. Then it locks and empties the certificate files, runs the firmware command, reads
    the firmware's status again, writes the new certificates, and unlocks the files. No command
    fetches certificates while it holds a lock.
    """


for _each in (
    check,
    status,
    sync,
    commit,
    set_config,
    load_vlek,
    prove_key,
    prove_host,
    install,
    uninstall,
):
    command.add_command(_each)
