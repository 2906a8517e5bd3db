# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host prove-key``: find the signing key with a guest's report."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import click

from snpcerts.cli.host.options import Host, with_host
from snpcerts.cli.host.output import event_printer, ignore_event
from snpcerts.cli.signals import ends_cleanly
from snpcerts.errors import RefusedError, RetryLaterError
from snpcerts.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snpcerts.abi.guest_message import KeySelect

_SIZE_LIMIT = 1 << 16
_running: set[int] = set()  # process groups of commands that have not ended
_starting = threading.Lock()  # held while a command is started
_ended = threading.Event()  # no more commands


@click.command(
    "prove-key",
    short_help="Prove the signing key with a guest's report.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@with_host
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=60.0,
    show_default=True,
    metavar="S",
    help=(
        "Time limit for COMMAND, in seconds. Updates of certificate files wait until COMMAND ends."
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.argument("command", nargs=-1, required=True)
def prove_key(host: Host, timeout: float, as_json: bool, command: tuple[str, ...]) -> None:
    """Find the signing key with a guest's report, record it, and update the certificate files.

    COMMAND makes one of this host's guests request a report, and writes the 1184 bytes of the
    report to standard output. In the arguments of COMMAND, {report_data} is replaced with the 64
    bytes of report data that the report must carry, in hexadecimal, and {key_sel} with a value for
    --key-sel. Both are also in the environment, as SNPCERTS_REPORT_DATA and SNPCERTS_KEY_SEL:

    \b
    snpcerts host prove-key -- ssh guest \\
        snpcerts guest report -o - --report-data {report_data} --key-sel {key_sel}

    While COMMAND runs, prove-key holds the shared lock on the first certificate file of the
    configuration (or on the file that --file names). It proves the signing key of that file's kind
    (VCEK or VLEK).

    Exit codes: 0 the key is proven and all files match, 1 the report contradicts the firmware's
    status or proves nothing, 3 try again later.
    """
    from snpcerts.host.proof import NONCE_SIZE, prove

    agent = host.agent(ignore_event if as_json else event_printer("text"))
    file = agent.config.files[0]

    def ask(nonce: bytes, select: KeySelect) -> bytes:
        return run_in_guest(command, nonce.hex(), select.name.lower(), timeout)

    begin_commands()
    with ends_cleanly():  # without this, COMMAND would continue after a signal
        try:
            done = prove(agent, file, ask, nonce=os.urandom(NONCE_SIZE))
        finally:
            end_commands()
    problem = done.synced.problem
    if as_json:
        click.echo(
            json.dumps(
                {
                    "key": {
                        "kind": done.proof.kind.value,
                        "tcb": done.proof.tcb.components(),
                        "certificate_sha256": done.proof.certificate,
                    },
                    "key_sel": int(done.proof.select),
                    "at": done.proof.at.isoformat(),
                    "contradicts": done.contradicts,
                    "in_step": problem is None,
                    "problem": None if problem is None else problem.message,
                }
            )
        )
    if problem is not None:
        raise problem
    if done.contradicts:
        click.get_current_context().exit(1)


def run_in_guest(command: Sequence[str], report_data: str, key_sel: str, timeout: float) -> bytes:
    """Run the command in a process group of its own, return its output, and kill what is left of
    the group.

    ``timeout`` is in seconds. Raises :class:`RefusedError` if the command fails or cannot be
    started, and :class:`RetryLaterError` if it takes longer than ``timeout``.
    """
    argv = [
        word.replace("{report_data}", report_data).replace("{key_sel}", key_sel) for word in command
    ]
    try:
        with uninterrupted(mask=False), _starting:
            if _ended.is_set():
                raise RefusedError("COMMAND was not started, because snpcerts is shutting down")
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env=os.environ | {"SNPCERTS_REPORT_DATA": report_data, "SNPCERTS_KEY_SEL": key_sel},
                start_new_session=True,
            )
            _running.add(process.pid)
    except OSError as error:
        raise RefusedError(f"cannot run {argv[0]}: {error.strerror}") from None
    deadline, data, code = time.monotonic() + timeout, None, None
    try:
        data = _output(process, deadline)
        if data is None:
            code = None
        elif len(data) > _SIZE_LIMIT:
            code = 0  # too much output is not a report, so do not read the rest
        else:
            code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        code = None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _running.discard(process.pid)
        if process.stdout is not None:
            process.stdout.close()
    if data is None or code is None:
        raise RetryLaterError(
            f"{argv[0]} timed out after {timeout:g} s", hint="allow more time with --timeout"
        )
    if code != 0:
        raise RefusedError(f"{argv[0]} ended with exit code {code}, so nothing is proven")
    return data


def begin_commands() -> None:
    """Allow :func:`run_in_guest` to start commands again after a call of :func:`end_commands`."""
    _ended.clear()


def end_commands() -> None:
    """Kill the commands of all threads, and let :func:`run_in_guest` start no more. Called when the
    proof is done, and when a signal ends this process.
    """
    with _starting:  # wait for a thread that is just adding its command to _running
        _ended.set()
        for group in tuple(_running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def _output(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """Return the process's output; None if the deadline passes first. Reading stops when there are
    more than ``_SIZE_LIMIT`` bytes.
    """
    if process.stdout is None:
        return b""
    fd, data = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while len(data) <= _SIZE_LIMIT:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                return None
            part = os.read(fd, 4096)
            if not part:
                break
            data += part
    return data
