# SPDX-License-Identifier: Apache-2.0
"""``snpcerts run``: give certificates to the guests of an unmodified VMM."""

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
    help="Certificate file to serve from, which 'snpcerts host' maintains.",
)
@click.option(
    "--certs-timeout",
    metavar="MS",
    type=click.IntRange(0, preload.MAX_TIMEOUT),
    default=preload.DEFAULT_TIMEOUT,
    show_default=True,
    help=(
        "Milliseconds that a vCPU waits while an update holds the file's lock. After that, its "
        "guest gets BUSY."
    ),
)
@click.option(
    "--print-environment",
    is_flag=True,
    help="Print the environment variables for libvirt or a systemd unit, and start nothing.",
)
@click.argument("program", nargs=-1)
def command(
    certs_filename: str, certs_timeout: int, print_environment: bool, program: tuple[str, ...]
) -> None:
    """Run PROGRAM, a VMM such as QEMU, and give its SNP guests certificates.

    The command preloads into PROGRAM a library that answers KVM's requests for certificates. The
    library does nothing for VMs that are not SNP guests, and nothing in VMMs that serve
    certificates themselves. The command refuses programs that cannot load the library, such as
    statically linked ones.
    """
    if print_environment == bool(program):
        raise UsageError("expected either a PROGRAM or --print-environment")
    if print_environment:
        environment = preload.environment(certs_filename, certs_timeout, {})
        for name, value in environment.items():
            if not value.isprintable():
                raise UsageError(
                    (f"expected only printable characters in the value of {name}, found {value!r}"),
                    hint="use a path that has only printable characters",
                )
        for name, value in environment.items():
            say(f"{name}={value}")
        return
    variables = preload.environment(certs_filename, certs_timeout, os.environ)
    warnings = (
        *preload.find_program(program[0], variables),
        *preload.certificate_warnings(certs_filename),
        *preload.sandbox_warnings(program, certs_filename),
    )
    for warning in warnings:
        say(printable(f"snpcerts: warning: {warning}"), err=True)
    preload.become(program, variables)
