# SPDX-License-Identifier: Apache-2.0
"""``snpcerts conformance``: judge how a VMM serves certificates."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from itertools import groupby
from typing import TYPE_CHECKING

import click

from snpcerts.cli.files import write_output
from snpcerts.cli.say import present
from snpcerts.cli.signals import ends_cleanly
from snpcerts.errors import UsageError
from snpcerts.printable import printable

# A longer run of checks that are skipped for the same reason is printed as one line.
_FEW = 3

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snpcerts.conformance.result import Result


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--list", "list_only", is_flag=True, help="Print the checks and their rules.")
@click.option("--only", metavar="ID", multiple=True, help="Judge only this check; may be repeated.")
@click.option(
    "--busy-limit",
    type=click.IntRange(1, 59_000),
    default=2000,
    show_default=True,
    metavar="MS",
    help="The longest time that the VMM claims to wait for the lock.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit for one scenario, including the VMM's start.",
)
@click.option(
    "--stop-signal",
    metavar="NAME",
    default="TERM",
    show_default=True,
    help="The signal that makes the VMM stop its vCPUs and end.",
)
@click.option("--junit", metavar="FILE", help="Also write the report as JUnit XML.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("vmm", nargs=-1)
def command(
    list_only: bool,
    only: tuple[str, ...],
    busy_limit: int,
    timeout: float,
    stop_signal: str,
    junit: str | None,
    as_json: bool,
    vmm: tuple[str, ...],
) -> None:
    """Run VMM with scripted guests and judge how it handles KVM_EXIT_SNP_REQ_CERTS.

    VMM is a command line, with {certs} in place of its certificate file. The
    unmodified VMM is started once for each scenario on an emulated SNP host, so
    no SNP hardware is needed. The exit code is 1 if a check fails.
    """
    from snpcerts.conformance.result import ResultState, count, to_json, to_junit
    from snpcerts.conformance.suite import run
    from snpcerts.conformance.trial import Limits
    from snpcerts.conformance.vmm_check import BY_ID

    if list_only:
        _list(as_json)
        return
    if not vmm:
        raise UsageError("no VMM given", hint="snpcerts conformance -- ./vmm --certs {certs}")
    limits = Limits(trial=timeout, busy=busy_limit / 1000, stop=_signal(stop_signal))
    started = time.monotonic()
    show = sys.stderr.isatty() and not as_json
    with ends_cleanly():
        results = run(
            vmm, limits=limits, only=only, on_progress=_show_progress if show else lambda _: None
        )
    seconds = time.monotonic() - started
    if show:
        click.echo("\r\x1b[K", nl=False, err=True)
    if junit is not None:
        write_output(junit, to_junit(results, vmm, seconds))
    totals = count(results)
    if as_json:
        click.echo(json.dumps(to_json(results, vmm, seconds)))
    else:
        present(printable(f"VMM: {shlex.join(vmm)}"))
        for detail, alike in groupby(results, _why_not_judged):
            rows = list(alike)
            if detail and len(rows) > _FEW:
                present(printable(f"  skip  {len(rows)} checks: {detail}"))
                continue
            for result in rows:
                _print(result)
                if result.state is ResultState.FAILED:
                    check = BY_ID[result.id]
                    click.echo(f"        asked: {check.asks}\n        rule:  {check.rule}")
        summary = ", ".join(f"{totals[state]} {state.value}" for state in ResultState)
        click.echo(f"{summary} in {seconds:.1f} s")
    if totals[ResultState.FAILED]:
        raise click.exceptions.Exit(1)


def _why_not_judged(result: Result) -> str:
    """Why the check was skipped; empty if it was judged."""
    return result.detail if result.state.value == "skipped" else ""


def _print(result: Result) -> None:
    word = {"passed": "pass", "failed": "FAIL", "skipped": "skip"}[result.state.value]
    present(printable(f"  {word}  {result.id:<24}{result.detail}".rstrip()))


def _show_progress(check: str) -> None:
    click.echo(f"\r\x1b[K{check} ...", nl=False, err=True)


def _list(as_json: bool) -> None:
    from snpcerts.conformance.vmm_check import CHECKS

    if as_json:
        rows: Sequence[dict[str, str]] = [
            {"id": check.id, "asks": check.asks, "rule": check.rule} for check in CHECKS
        ]
        click.echo(json.dumps(rows))
        return
    for check in CHECKS:
        click.echo(f"{check.id}\n    {check.asks}\n    rule: {check.rule}")


def _signal(name: str) -> signal.Signals:
    try:
        return signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError:
        raise UsageError(
            f"--stop-signal {name}: unknown signal", hint="use TERM, INT, USR1 or another name"
        ) from None
