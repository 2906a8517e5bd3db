# SPDX-License-Identifier: Apache-2.0
"""``snpcerts lock``: hold the certificate file's lock by hand."""

from __future__ import annotations

import click

from snpcerts.cli.say import say


@click.command()
@click.argument("file")
@click.option("--shared", is_flag=True, help="Take the lock a VMM takes, not an update's.")
@click.option(
    "--seconds", type=click.FloatRange(min=0), metavar="N", help="Stop by itself after N seconds."
)
def command(file: str, shared: bool, seconds: float | None) -> None:
    """Hold the lock on a certificate FILE until interrupted.

    While an exclusive lock is held, guests that ask for certificates are told
    that the host is busy, and come back. Refuses at once, naming the holder,
    when someone has the lock.
    """
    from snpcerts.certfile.hold import hold

    mode = "shared" if shared else "exclusive"
    with hold(file, shared=shared) as elapsed:
        say(f"{file}: {mode} lock held")
        for second in elapsed.ticks(seconds):
            say(f"holding the {mode} lock ({second} s)")
    say(f"{file}: lock released")
