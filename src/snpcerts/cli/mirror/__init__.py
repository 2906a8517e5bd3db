# SPDX-License-Identifier: Apache-2.0
"""``snpcerts mirror``: one key server for a fleet.

``serve``, ``roll`` and ``forget`` are the commands of these names; ``archives`` has ``export`` and
``import``; ``operator_access`` has the options of those that call a mirror.
Imports ``cli``, ``mirror``, ``kds`` and ``abi``.
"""

from __future__ import annotations

import click

from snpcerts.cli.mirror.archives import export, import_
from snpcerts.cli.mirror.forget import forget
from snpcerts.cli.mirror.roll import roll
from snpcerts.cli.mirror.serve import serve


@click.group()
def command() -> None:
    """Mirror AMD's key server for a fleet: ask for each certificate once.

    AMD's server gives each address about one VCEK every ten seconds. The mirror keeps this pace for
    all hosts that use it, stores what verifies, and serves it under AMD's own URLs.
    """


for _each in (serve, roll, forget, export, import_):
    command.add_command(_each)
