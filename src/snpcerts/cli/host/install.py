# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host install`` and ``uninstall``: the agent as a service of this host."""

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
    click.option("--dry-run", is_flag=True, help="Print what would be done; change nothing."),
    click.option(
        "--root",
        metavar="DIR",
        default="/",
        help="Work in the root directory of another system, such as an image. [default: /]",
    ),
    click.option(
        "--command",
        "program",
        metavar="PATH",
        help="The path of snpcerts that the units start. [default: this command's own]",
    ),
    click.option(
        "--replace",
        is_flag=True,
        help="Also replace files that were edited, or that belong to another installation.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
)


def _with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command(short_help="Install the units, the configuration and the group.")
@click.option(
    "--group",
    metavar="NAME",
    default="kvm",
    show_default=True,
    help="The group that the VMMs run in. It is created if it does not exist.",
)
@_with_options
def install(
    group: str, dry_run: bool, root: str, program: str | None, replace: bool, as_json: bool
) -> None:
    """Make the agent a service of this host: units, configuration, group and directories.

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
    certificates. But nothing updates the files any more, so remove them before the firmware changes
    or the host reboots.
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
    """Return the path of this command: the one it was started with or the installed one."""
    started = shutil.which(sys.argv[0]) if os.path.basename(sys.argv[0]) == "snpcerts" else None
    return os.path.abspath(started or os.path.join(sysconfig.get_path("scripts"), "snpcerts"))


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
        present("nothing is installed here")
    if dry_run:
        present("nothing was changed: --dry-run")
    elif after:
        present("next:")
        for line in after:
            say(f"  {line}")
