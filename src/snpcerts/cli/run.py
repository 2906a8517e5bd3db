# SPDX-License-Identifier: Apache-2.0
"""``snpcerts run``: certificates for the guests of a VMM that knows nothing of them."""

from __future__ import annotations

import os

import click

from snpcerts.cli.say import say
from snpcerts.errors import UsageError
from snpcerts.printable import printable
from snpcerts.vmm import preload


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--certs-filename",
    metavar="FILE",
    required=True,
    help="The certificate file, as 'snpcerts host' keeps it.",
)
@click.option(
    "--certs-timeout",
    metavar="MS",
    type=click.IntRange(0, preload.MAX_TIMEOUT),
    default=preload.DEFAULT_TIMEOUT,
    show_default=True,
    help="Milliseconds a vCPU waits for an update to end; then its guest is told BUSY.",
)
@click.option(
    "--print-environment",
    is_flag=True,
    help="Print the variables that do it, for libvirt or a systemd unit, and start nothing.",
)
@click.argument("program", nargs=-1)
def command(
    certs_filename: str, certs_timeout: int, print_environment: bool, program: tuple[str, ...]
) -> None:
    """Run PROGRAM, a VMM such as QEMU: its SNP guests get certificates with their reports.

    A library preloaded into it answers KVM's requests for certificates. VMs that are
    not SNP, and VMMs that serve certificates themselves, are left alone. Refuses
    programs that the library could not serve: static ones, for instance.
    """
    if print_environment == bool(program):
        raise UsageError("one of a PROGRAM and --print-environment is needed")
    if print_environment:
        environment = preload.environment(certs_filename, certs_timeout, {})
        for name, value in environment.items():
            if not value.isprintable():
                raise UsageError(
                    f"{name} would be {value!r}, which cannot be given in one line",
                    hint="use a path of printable characters",
                )
        for name, value in environment.items():
            say(f"{name}={value}")
        return
    variables = preload.environment(certs_filename, certs_timeout, os.environ)
    for doubt in (*preload.find_program(program[0], variables), *preload.doubts(certs_filename)):
        say(printable(f"snpcerts: warning: {doubt}"), err=True)
    preload.become(program, variables)
