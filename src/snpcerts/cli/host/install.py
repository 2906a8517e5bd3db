# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host install`` and ``uninstall``: install the agent as a service of this host, and
remove it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from snpcerts.cli.say import present, say
from snpcerts.cli.signals import ends_cleanly

if TYPE_CHECKING:
    from snpcerts.host.installation import InstallStep, InstallTarget

_OPTIONS = (
    click.option(
        "--dry-run", is_flag=True, help="Print what the command would do, and change nothing."
    ),
    click.option(
        "--root",
        metavar="DIR",
        default="/",
        help="Root directory of the system to change, such as a mounted image. [default: /]",
    ),
    click.option(
        "--command",
        "program",
        metavar="PATH",
        help=(
            "Path of the snpcerts program that the units start. [default: the path of this program]"
        ),
    ),
    click.option(
        "--replace",
        is_flag=True,
        help=(
            "Also replace or remove files that were edited or that belong to another installation."
        ),
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object."),
)


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command(short_help="Install the agent's systemd units, configuration and group.")
@click.option(
    "--group",
    metavar="NAME",
    default="kvm",
    show_default=True,
    help="Group that the VMMs run in. The command creates it if it does not exist.",
)
@_with_options
def install(
    group: str, dry_run: bool, root: str, program: str | None, replace: bool, as_json: bool
) -> None:
    """Make the agent a service of this host: install its systemd units, configuration, group and
    directories.

    The command prints what it did, and starts nothing. It keeps an existing configuration, and
    never changes a certificate file. Run it again after an upgrade, or to complete an interrupted
    installation.
    """
    from snpcerts.host.installation import InstallTarget, next_steps, plan_installation

    target = InstallTarget(root, program or own_path(), group, replace)
    steps = plan_installation(target)
    _do(target, steps, dry_run, as_json, next_steps(target, steps))


@click.command(short_help="Remove what 'host install' installed.")
@click.option("--purge", is_flag=True, help="Also remove the configuration and the cache.")
@_with_options
def uninstall(
    purge: bool, dry_run: bool, root: str, program: str | None, replace: bool, as_json: bool
) -> None:
    """Stop the agent and remove what 'host install' installed.

    The group, the certificate files and the record of the signing keys stay, so guests keep their
    certificates. Because nothing updates the certificate files any more, remove them before the
    firmware changes or the host reboots.
    """
    from snpcerts.host.config import DEFAULT_FILE
    from snpcerts.host.installation import InstallTarget, plan_removal

    target = InstallTarget(root, program or own_path(), replace=replace)
    steps = plan_removal(target, purge=purge)
    after = []
    if any(step.item == "certificates" for step in steps):
        after = [(f"rm {DEFAULT_FILE}   # do this before the firmware changes or the host reboots")]
    _do(target, steps, dry_run, as_json, after)


def own_path() -> str:
    """Return this program's path: the path that it was started with, or else its installed path.

    If that is the link that 'host install' makes, return the link's target, which the units start.
    """
    from snpcerts.host.installation import COMMAND_LINK

    started = shutil.which(sys.argv[0]) if os.path.basename(sys.argv[0]) == "snpcerts" else None
    path = os.path.abspath(started or os.path.join(sysconfig.get_path("scripts"), "snpcerts"))
    return os.readlink(path) if path == COMMAND_LINK and os.path.islink(path) else path


def _do(
    target: InstallTarget,
    steps: Sequence[InstallStep],
    dry_run: bool,
    as_json: bool,
    after: Sequence[str],
) -> None:
    from snpcerts.host.installation import carry_out

    if not dry_run:
        with ends_cleanly():
            carry_out(target, steps)
    if as_json:
        say(
            json.dumps(
                {
                    "dry_run": dry_run,
                    "root": target.root,
                    "command": target.command,
                    "steps": [step.to_json() for step in steps],
                    "next": list(after),
                }
            )
        )
        return
    for step in steps:
        present(str(step))
    if not steps:
        present("found no installation to remove")
    if dry_run:
        present("nothing was changed, because of --dry-run")
    elif after:
        present("next:")
        for line in after:
            say(f"  {line}")
