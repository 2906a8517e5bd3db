# SPDX-License-Identifier: Apache-2.0
"""``snpcerts conformance``: judge how a VMM serves certificates."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import stat
import time
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from snpcerts.cli.files import check_output, write_output
from snpcerts.cli.say import present, shows_progress
from snpcerts.cli.signals import ends_cleanly
from snpcerts.errors import SnpCertsError, UsageError
from snpcerts.printable import printable

# If more than this many checks in a row are skipped for the same reason, print them as one line.
_FEW = 3
# elf.h: e_ident[EI_CLASS] is byte 4, e_machine bytes 18 and 19.
_ELF_HEAD, _ELFCLASS64, _EM_X86_64 = 20, 2, 62

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snpcerts.conformance.result import Result


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "--list",
    "list_only",
    is_flag=True,
    help="Print the checks and the rules behind them, and run nothing.",
)
@click.option(
    "--only", metavar="ID", multiple=True, help="Run only this check. May be given several times."
)
@click.option(
    "--busy-limit",
    type=click.IntRange(1, 59_000),
    default=2000,
    show_default=True,
    metavar="MS",
    help="Longest time that the VMM should wait for the lock.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit for each step, such as the VMM's start or a request.",
)
@click.option(
    "--stop-signal",
    metavar="NAME",
    default="TERM",
    show_default=True,
    help="Signal that makes the VMM stop its vCPUs and end.",
)
@click.option(
    "--keep",
    metavar="DIR",
    help=(
        "For each check that does not pass, save the VMM's output and the observed events in DIR."
    ),
)
@click.option(
    "--trace",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help=(
        "Write a timeline of all runs to FILE, for ui.perfetto.dev. Without FILE, write a "
        "timeline for each check that --keep saves."
    ),
)
@click.option("--fail-on-skip", is_flag=True, help="Exit with code 1 if a check is skipped.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Number of VMMs that run at the same time. [default: two for each processor, at most 8]",
)
@click.option(
    "--kernel",
    type=click.Choice(["7.2", "7.3"]),
    default="7.3",
    show_default=True,
    help="Linux release that the emulated host runs.",
)
@click.option(
    "--firmware",
    type=click.Choice(["genoa-1.55.25", "documented", "observed-2022"]),
    default="documented",
    show_default=True,
    help=(
        "What the emulated firmware follows where sources disagree about AMD's firmware: AMD's "
        "published code for Genoa, AMD's document, or observations on a real host."
    ),
)
@click.option("--junit", metavar="FILE", help="Also write the results to FILE, as JUnit XML.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.argument("vmm", nargs=-1)
def command(
    list_only: bool,
    only: tuple[str, ...],
    busy_limit: int,
    timeout: float,
    stop_signal: str,
    keep: str | None,
    trace: str | None,
    fail_on_skip: bool,
    jobs: int | None,
    kernel: str,
    firmware: str,
    junit: str | None,
    as_json: bool,
    vmm: tuple[str, ...],
) -> None:
    """Run VMM with scripted guests and judge how it handles KVM_EXIT_SNP_REQ_CERTS.

    VMM is a command line with {certs} where the path of the certificate file belongs. The suite
    starts the unmodified VMM once for each scenario, on an emulated SNP host, so it needs no SNP
    hardware. The exit code is 1 if a check fails or if no check could be judged. Advice does not
    change the exit code.
    """
    from snpcerts.conformance.result import (
        ResultState,
        common_causes,
        count,
        to_json,
        to_junit,
    )
    from snpcerts.conformance.suite import Keeping, checked, run
    from snpcerts.conformance.trial import Limits
    from snpcerts.conformance.vmm_check import BY_ID
    from snpcerts.emulator.kvm.release import KernelRelease
    from snpcerts.trace import Timeline

    if list_only:
        _list(as_json)
        return
    if not vmm:
        raise UsageError(
            "expected the VMM's command line, found none",
            hint=(
                "give the command line after --, as in snpcerts conformance -- ./vmm --certs "
                "{certs}"
            ),
        )
    if trace == "" and keep is None:
        raise UsageError(
            "--trace needs a FILE, or a directory from --keep",
            hint="add --keep DIR, or name a file: --trace FILE",
        )
    keeping = None if keep is None else Keeping(Path(keep), trace == "")
    if trace:
        # Without "--", click takes the VMM's path as FILE, and the VMM would be overwritten.
        if os.path.isfile(trace) and os.access(trace, os.X_OK):
            raise UsageError(
                f"--trace {trace}: expected the file to write the timeline to, found a program",
                hint="put -- before the VMM's command, or name another file",
            )
        check_output(trace)
    timeline = Timeline("snpcerts conformance") if trace else None
    limits = Limits(trial=timeout, busy=busy_limit / 1000, stop=_signal(stop_signal))
    checked(vmm, only)
    program = _program(vmm[0])
    started = time.monotonic()
    show = shows_progress() and not as_json
    with ends_cleanly():
        try:
            results = run(
                (program, *vmm[1:]),
                limits=limits,
                only=only,
                on_progress=_show_progress if show else lambda _: None,
                keeping=keeping,
                jobs=jobs,
                timeline=timeline,
                kernel=KernelRelease(kernel),
                firmware=firmware,
            )
        except OSError as error:
            if keep is None or error.filename is None or not str(error.filename).startswith(keep):
                raise
            raise SnpCertsError(f"--keep {keep}: {error.strerror}") from error
    seconds = time.monotonic() - started
    if show:
        click.echo("\r\x1b[K", nl=False, err=True)
    if trace and timeline is not None:
        write_output(trace, timeline.to_json().encode())
    if junit is not None:
        write_output(junit, to_junit(results, vmm, seconds))
    totals = count(results)
    if as_json:
        click.echo(json.dumps(to_json(results, vmm, seconds)))
    else:
        present(printable(f"VMM: {shlex.join(vmm)}"))
        for cause, checks in common_causes(results):
            present(printable(f"  {len(checks)} checks fail for the same reason: {cause}"))
            present(f"      {', '.join(checks)}")
        for detail, alike in groupby(results, _why_not_judged):
            rows = list(alike)
            if detail and len(rows) > _FEW:
                present(printable(f"  skip  {len(rows)} checks: {detail}"))
                continue
            for result in rows:
                _print(result)
                if result.state in (ResultState.FAILED, ResultState.ADVICE):
                    check = BY_ID[result.id]
                    present(f"        asked: {check.asks}\n        rule:  {check.rule}")
                    if result.expected:
                        present(printable(f"        expected: {result.expected}"))
                        present(printable(f"        found:    {result.found}"))
        summary = ", ".join(f"{totals[state]} {state.value}" for state in ResultState)
        click.echo(f"{summary} in {seconds:.1f} s")
    skipped = totals[ResultState.SKIPPED]
    if skipped == len(results) and not as_json:
        click.echo("no check could be judged", err=True)
    if totals[ResultState.FAILED] or skipped == len(results) or (fail_on_skip and skipped):
        raise click.exceptions.Exit(1)


def _program(name: str) -> str:
    """Return the path of the VMM. Raises :class:`UsageError` if the emulated host cannot run it."""
    found = shutil.which(name)
    if found is None:
        exists = os.path.isfile(name)
        raise UsageError(
            f"cannot run {name}: {'not executable' if exists else 'no such program'}",
            hint="make it executable (chmod +x)" if exists else "give the program's path",
        )
    try:
        status = os.stat(found)
        with open(found, "rb") as file:
            head = file.read(_ELF_HEAD)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error
    if head.startswith(b"\x7fELF"):
        wide, machine = head[4] == _ELFCLASS64, int.from_bytes(head[18:20], "little")
        if not wide or machine != _EM_X86_64:
            raise UsageError(
                f"{name}: expected a 64-bit program for x86-64, found one for another architecture",
                hint="SNP guests run only on x86-64: build the VMM for x86-64",
            )
    elif not head.startswith(b"#!"):
        raise UsageError(f"{name}: expected an ELF program or a script, found neither")
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID) and os.geteuid() != status.st_uid:
        click.echo(
            f"{name} is setuid or setgid, which has no effect here: the program runs as this user",
            err=True,
        )
    return found


def _why_not_judged(result: Result) -> str:
    """Return why the check was skipped, or an empty string if it was not skipped."""
    return result.detail if result.state.value == "skipped" else ""


def _print(result: Result) -> None:
    words = {"passed": "pass", "failed": "FAIL", "skipped": "skip", "advice": "note"}
    word = words[result.state.value]
    present(printable(f"  {word}  {result.id:<24}{result.detail}".rstrip()))


def _show_progress(check: str) -> None:
    click.echo(f"\r\x1b[K{check} ...", nl=False, err=True)


def _list(as_json: bool) -> None:
    from snpcerts.conformance.vmm_check import CHECKS

    if as_json:
        rows: Sequence[dict[str, str]] = [
            {
                "id": check.id,
                "asks": check.asks,
                "rule": check.rule,
                "level": check.level.value,
            }
            for check in CHECKS
        ]
        click.echo(json.dumps(rows))
        return
    for check in CHECKS:
        level = " (advice)" if check.level.value == "advice" else ""
        present(f"{check.id}{level}\n    {check.asks}\n    rule: {check.rule}")


def _signal(name: str) -> signal.Signals:
    try:
        return signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError:
        raise UsageError(
            f"--stop-signal {name}: expected the name of a signal",
            hint="give a signal's name, such as TERM, INT or USR1",
        ) from None
