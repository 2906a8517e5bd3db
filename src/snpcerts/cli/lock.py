# SPDX-License-Identifier: Apache-2.0
"""``snpcerts lock``: hold a certificate file's lock by hand."""

from __future__ import annotations

import click

from snpcerts.cli.say import say, say_line


@click.command()
@click.argument("file")
@click.option(
    "--shared",
    is_flag=True,
    help="Take the shared lock, as a VMM does, instead of the exclusive lock, as an update does.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0), metavar="N", help="Release the lock after N seconds."
)
def command(file: str, shared: bool, seconds: float | None) -> None:
    """Hold the lock on a certificate FILE until interrupted.

    While the command holds the exclusive lock, guests that request certificates get BUSY and try
    again. If another process holds a conflicting lock, the command fails at once and names that
    process.
    """
    from snpcerts.certfile.hold import hold

    mode = "shared" if shared else "exclusive"
    with hold(file, shared=shared) as lock:
        say_line(f"{file}: {mode} lock held")
        for second in lock.ticks(seconds):
            say(f"holding the {mode} lock ({second} s)")
    say_line(f"{file}: lock released")
