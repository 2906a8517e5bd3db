# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host``: the agent of an SNP host, and safe versions of the firmware commands.

``check``, ``status`` and ``sync`` are the commands of these names. ``change`` has ``commit``,
``set-config`` and ``load-vlek``; ``prove`` has ``prove-key``; ``prove_host`` has ``prove``;
``install`` has ``install`` and ``uninstall``. ``options`` has the options of all host commands;
``host_source`` opens their certificate source; ``output`` prints. Imports ``cli``, ``host``,
``vmm``, ``kds``, ``certfile``, ``endorsement`` and ``abi``.
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
    """Keep this host's certificate files in step with its firmware.

    Every command that changes the firmware's key makes a plan, fetches the certificates of the new
    key, locks and empties the certificate files, gives the firmware command, reads the firmware's
    status again, publishes the certificates, and unlocks the files. It never fetches while it holds
    a lock.
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
