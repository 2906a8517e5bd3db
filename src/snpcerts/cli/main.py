# SPDX-License-Identifier: Apache-2.0
"""The ``snpcerts`` command: finds the subcommand, imports it, and reports errors.

A subcommand is a module of this package with a click command named ``command``. Its one-line help
is in ``COMMANDS``, so that ``--help`` imports no subcommand.
"""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from snpcerts import __version__
from snpcerts.cli.examples import add_examples
from snpcerts.cli.say import present, say
from snpcerts.cli.signals import EndedBySignalError
from snpcerts.errors import SnpCertsError
from snpcerts.printable import printable

COMMANDS: dict[str, tuple[str, str]] = {
    "table": ("table", "Build, show and extract certificate tables."),
    "verify": ("verify", "Verify attestation reports with their certificates."),
    "policy": (
        "policy_commands",
        "Write policies from AMD's security bulletins, and reference values from policies.",
    ),
    "host": ("host", "Keep an SNP host's certificate files matched to its firmware's signing key."),
    "report": ("report", "Print attestation reports in readable form."),
    "lock": ("lock", "Hold a certificate file's lock, as an update does."),
    "kds": ("kds", "Fetch certificates from AMD's key server; keep only what verifies."),
    "mirror": ("mirror", "Mirror AMD's key server for a fleet of hosts."),
    "run": ("run", "Run an unmodified VMM, and give its SNP guests certificates."),
    "guest": ("guest", "Request attestation reports from inside an SNP guest."),
    "emulate": ("emulate", "Run unmodified programs on an emulated SNP platform."),
    "conformance": ("conformance", "Test how a VMM serves certificates to its guests."),
    "demo": ("demo", "Watch guests, firmware and updates work together, without SNP hardware."),
}


class _LateGroup(click.Group):
    """A group that imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's)
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"snpcerts.cli.{COMMANDS[cmd_name][0]}")
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.command is not a click command")
        return add_examples(cmd_name, command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        close = [] if args[0] in COMMANDS else difflib.get_close_matches(args[0], COMMANDS, 1, 0.5)
        if close:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's)
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_LateGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 refused or failed, 2 wrong usage or unreadable input, "
    "3 try again later.",
)
@click.version_option(__version__, "-v", "--version", prog_name="snpcerts")
def cli() -> None:
    """Give SEV-SNP guests certificates that match the key that signs their reports."""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors go to standard error, one line each."""
    try:
        result = cli.main(args=list(arguments), prog_name="snpcerts", standalone_mode=False)
    except SnpCertsError as error:
        present(f"snpcerts: {error}", err=True)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        shown, message = io.StringIO(), error.format_message()
        error.show(shown)
        # The message may quote an argument unescaped.
        say(shown.getvalue().rstrip("\n").replace(message, printable(message)), err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except EndedBySignalError as ended:
        return ended.exit_code
    except BrokenPipeError:
        # The process that read our output has closed its end of the pipe. Discard what Python
        # flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        present(printable(f"snpcerts: {place}{error.strerror or error}"), err=True)
        return 1
    return result if isinstance(result, int) else 0


def run() -> NoReturn:
    """Run the command that the command line names, and exit with its exit code."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
