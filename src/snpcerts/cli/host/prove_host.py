# SPDX-License-Identifier: Apache-2.0
"""``snpcerts host prove``: compare this host with each claim in docs/fidelity.md."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from snpcerts import __version__
from snpcerts.cli.files import check_output, write_output
from snpcerts.cli.host.change import changed_tcb
from snpcerts.cli.host.options import Host, with_host
from snpcerts.cli.host.output import event_printer, ignore_event
from snpcerts.cli.host.prove import begin_commands, end_commands, run_in_guest
from snpcerts.cli.say import present, say
from snpcerts.cli.signals import ends_cleanly
from snpcerts.cli.source_options import anchors_of
from snpcerts.cli.tcb_components import METAVAR
from snpcerts.errors import RefusedError, RetryLaterError, UsageError
from snpcerts.parent_process import end_with_parent
from snpcerts.printable import printable
from snpcerts.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from snpcerts.abi.guest_message import KeySelect
    from snpcerts.host.agent import Agent
    from snpcerts.host.claim_report import ClaimReport

_CERTS: Final = "{certs}"
_OUTPUT_KEPT: Final = 1 << 14  # bytes of a VMM's last output that are kept
_PAUSE: Final = 1.0  # seconds between two tries while the guest starts
_END_LIMIT: Final = 10.0  # seconds for a VMM to end after SIGTERM
_VERSION_LIMIT: Final = 10.0


@click.command(
    "prove",
    short_help="Compare this host with each of the emulator's claims.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@with_host
@click.option(
    "--vmm",
    metavar="COMMAND",
    help=(
        "Command line of a VMM to start under the shim for the comparison. If the VMM serves "
        "certificates itself, write {certs} where the path of the certificate file belongs; the "
        "VMM then starts without the shim. [default: none; the guest must already be running]"
    ),
)
@click.option(
    "--update",
    metavar=METAVAR,
    help=(
        "Set this reported TCB during the comparison, so that the signing key changes, "
        "and then restore the previous one."
    ),
)
@click.option("-o", "--output", metavar="FILE", help="File to write the results to, as JSON.")
@click.option("--text", "text_path", metavar="FILE", help="File to write the results to, as text.")
@click.option(
    "--full-chip-id", is_flag=True, help="Write the chip ID in full instead of shortened."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Time limit for COMMAND, in seconds.",
)
@click.option(
    "--start-timeout",
    type=click.FloatRange(0.1, 3600),
    default=180.0,
    show_default=True,
    metavar="S",
    help=(
        "With --vmm: time limit, in seconds, for COMMAND to succeed for the first time. Until "
        "then, COMMAND is repeated."
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.argument("command", nargs=-1, required=True)
def prove_host(
    host: Host,
    vmm: str | None,
    update: str | None,
    output: str | None,
    text_path: str | None,
    full_chip_id: bool,
    timeout: float,
    start_timeout: float,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Have this host's guests request reports, and check that the host behaves as docs/fidelity.md
    claims.

    COMMAND makes one of this host's guests request an extended report, and writes the report and
    its certificates to standard output. In the arguments of COMMAND, {report_data} and {key_sel}
    are replaced as in 'host prove-key':

    \b
    snpcerts host prove --vmm 'qemu-system-x86_64 ...' -- ssh guest \\
        snpcerts guest report -o - --format tsm-json \\
        --report-data {report_data} --key-sel {key_sel}

    For each claim in docs/fidelity.md, the result is 'seen', 'differs' or 'not-tried'. The results
    apply to hardware only if the reports verify with AMD's root. With any other root, the output
    says so.

    The command locks the certificate file for a few seconds, during which the host's other guests
    get BUSY. With --update, the signing key changes twice, and all certificate files are updated
    with it.

    Exit codes: 0 no claim differs, 1 a claim differs or no report verified.
    """
    for path in filter(None, (output, text_path)):
        check_output(path)
    change = None if update is None else changed_tcb("--update", update)
    certs = host.config().files[0].path
    argv = [] if vmm is None else _arguments(vmm, certs)
    agent = host.agent(ignore_event if as_json else event_printer("text"))
    begin_commands()
    with ends_cleanly(), _vmm_of(argv, None if _CERTS in (vmm or "") else certs) as started:
        report = _report(host, agent, started)

        def ask(nonce: bytes, select: KeySelect) -> bytes:
            return started.asked(
                lambda: run_in_guest(command, nonce.hex(), select.name.lower(), timeout),
                start_timeout,
            )

        from snpcerts.host.claim_trial import ClaimTrial

        anchors = anchors_of(agent.config.anchors)
        trial = ClaimTrial(agent, agent.config.files[0], ask, anchors, report, started.exit_number)
        try:
            trial.run(change)
        finally:
            end_commands()
        started.record_running(report)
    text = "\n".join(report.lines(full_chip_id=full_chip_id))
    value = json.dumps(report.to_json(full_chip_id=full_chip_id))
    if output is not None:
        write_output(output, f"{value}\n".encode())
    if text_path is not None:
        write_output(text_path, f"{text}\n".encode())
    if as_json:
        say(value)
    else:
        present(text)
    if report.differs or report.root is None:
        click.get_current_context().exit(1)


def _report(host: Host, agent: Agent, started: _Vmm) -> ClaimReport:
    """Return a :class:`ClaimReport` with the claims that can be checked without a guest."""
    from snpcerts.cli.host.check import findings
    from snpcerts.host import kernel_numbers
    from snpcerts.host.claim_report import ClaimReport, Showing
    from snpcerts.vmm.enable import supports_req_certs

    release = platform.release()
    checks = findings(host)
    about = {"kernel": release, "product": agent.firmware.product.value}
    about |= {"VMM": started.name} if started.name else {}
    report = ClaimReport(
        datetime.now(UTC),
        __version__,
        agent.firmware.hwid.hex(),
        about,
        [each.to_json() for each in checks],
    )
    report.observations += kernel_numbers.observe(release)
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        report.note("attribute", "launch", Showing.NOT_TRIED, f"/dev/kvm: {error.strerror}")
        return report
    try:
        supported = supports_req_certs(fd)
    except OSError as error:
        report.note("attribute", "launch", Showing.DIFFERS, f"/dev/kvm: {error.strerror}")
        return report
    finally:
        os.close(fd)
    showing = Showing.SEEN if supported else Showing.NOT_TRIED
    detail = "KVM_X86_SEV_SNP_REQ_CERTS is " + ("1" if supported else "missing or 0")
    report.note("attribute", "launch", showing, detail)
    return report


class _Vmm:
    """The VMM that this command has started, if any."""

    def __init__(self, process: subprocess.Popen[bytes] | None, name: str) -> None:
        self.name = name
        self._process = process
        self._said = b""  # the end of its output
        self._exit: int | None = None
        self._answered = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        if process is not None:
            self._reader.start()

    def _read(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        from snpcerts.vmm.preload import EXIT_TOLD

        pattern = re.compile(EXIT_TOLD.format(r"(\d+)\s").encode())
        # Read chunks, because a guest's console may print no line breaks. Keep only the end of the
        # output, because a guest may print much before it requests certificates.
        while data := os.read(self._process.stdout.fileno(), 4096):
            self._said = (self._said + data)[-_OUTPUT_KEPT:]
            if self._exit is None and (found := pattern.search(self._said)) is not None:
                self._exit = int(found[1])

    def exit_number(self) -> int | None:
        """Return the exit number that KVM used, as read from the VMM's output; None if the output
        does not have it.
        """
        return self._exit

    def asked(self, ask: Callable[[], bytes], limit: float) -> bytes:
        """Call ``ask`` and return its result. Until it has succeeded once, retry it for up to
        ``limit`` seconds, because the guest may still be starting.
        """
        deadline = time.monotonic() + limit
        while True:
            try:
                data = ask()
            except (RefusedError, RetryLaterError):
                self._require_running()
                if self._answered or self._process is None or time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE)
            else:
                self._answered = True
                return data

    def _require_running(self) -> None:
        if self._process is None or self._process.poll() is None:
            return
        self._reader.join(1)
        last = self._said.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise RefusedError(
            printable(f"the VMM ended (exit code {self._process.returncode}): {''.join(last)}")
        )

    def record_running(self, report: ClaimReport) -> None:
        """If the VMM is still running and its guest has answered, record in ``report`` that the VMM
        runs a guest.
        """
        from snpcerts.host.claim_report import Showing

        if self._process is not None and self._process.poll() is None and self._answered:
            what = f"{self.name} starts and runs a guest"
            report.note("vmm-runs", "capabilities", Showing.SEEN, what)


@contextlib.contextmanager
def _vmm_of(argv: Sequence[str], certs: str | None) -> Iterator[_Vmm]:
    """Start the VMM, with the shim if ``certs`` names a certificate file. End all its processes
    after the block. If this process is killed, the kernel ends the VMM with SIGTERM.
    """
    if not argv:
        yield _Vmm(None, "")
        return
    from snpcerts.vmm import preload

    variables = {preload.TELL_EXIT: "1"}
    if certs is not None:
        variables |= preload.environment(certs, preload.DEFAULT_TIMEOUT, os.environ)
        for warning in preload.find_program(argv[0], variables):
            say(printable(f"snpcerts: warning: {warning}"), err=True)
    process: subprocess.Popen[bytes] | None = None
    with_this_process = partial(end_with_parent, os.getpid(), signal.SIGTERM)
    try:
        try:
            with uninterrupted(mask=False):
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=os.environ | variables,
                    start_new_session=True,
                    preexec_fn=with_this_process,  # noqa: PLW1509 (this process has no other thread yet)
                )
        except OSError as error:
            raise RefusedError(f"--vmm: cannot run {argv[0]}: {error.strerror}") from None
        yield _Vmm(process, _name_of(argv))
    finally:
        if process is not None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the VMM and its process group, and wait for the VMM."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_LIMIT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _arguments(command: str, certs: str) -> list[str]:
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--vmm: {error}") from None
    if not argv:
        raise UsageError(
            "--vmm: expected a command line, found an empty string",
            hint="give the VMM's command line",
        )
    if shutil.which(argv[0]) is None:
        raise UsageError(f"--vmm: {argv[0]}: no such program", hint="give the program's path")
    return [word.replace(_CERTS, certs) for word in argv]


def _name_of(argv: Sequence[str]) -> str:
    """Return the VMM's name; for QEMU, also its version. Other VMMs are not asked for a version,
    because they might start a VM.
    """
    name = os.path.basename(argv[0])
    if not name.startswith("qemu-"):
        return name
    try:
        made = subprocess.run(
            [argv[0], "--version"], capture_output=True, timeout=_VERSION_LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return name
    first = made.stdout.decode("utf-8", "replace").splitlines()[:1]
    return printable(first[0] if first else name)
