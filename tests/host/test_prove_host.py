# SPDX-License-Identifier: Apache-2.0
"""``host prove`` on the emulated platform, unchanged and with one fault at a time."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snpcerts.abi.product import Product
from snpcerts.cli.main import main
from snpcerts.emulator.psp.choices import PUBLISHED, choices_of
from snpcerts.fidelity import CLAIMS
from snpcerts.vmm.preload import shim_library
from tests.documented_json import documented

from ..emulated import SNPCERTS, Emulated
from ..forked_commands import Commands
from ..keys import prepare_platform
from ..shim.conftest import build
from ..sizes import FULL
from .site import Site, key_server

pytestmark = pytest.mark.slow
only_in_full = pytest.mark.skipif(not FULL, reason="SNPCERTS_FULL_TESTS=1 tries it")

VMM_MODULE = "snpcerts.emulator.machine.vmm_program"
BUILT_IN = f"{sys.executable} -m {VMM_MODULE} {{certs}}"
# Prints more console output than is kept, before the guest's first request.
NOISY = f"sh -c 'head -c 100000 /dev/zero; exec {sys.executable} -m {VMM_MODULE} $0' {{certs}}"
WITHOUT_LOCK = """
import sys
from snpcerts.certfile.file import CertFile
from snpcerts.demo.broken import no_lock
from snpcerts.emulator.machine.vmm_program import run_vm
from snpcerts.vmm.exit_service import ExitService
run_vm(ExitService(CertFile(sys.argv[1], no_lock())))
"""
ASK = (
    *SNPCERTS,
    *("guest", "report", "-o", "-", "--format", "tsm-json"),
    *("--report-data", "{report_data}", "--key-sel", "{key_sel}"),
)


@pytest.fixture
def host(tmp_path: Path, forked: Commands) -> Iterator[Site]:
    emulated = Emulated(tmp_path / "platform", tmp_path / "certs", forked)
    prepare_platform(emulated.directory, Product.GENOA, choices_of(PUBLISHED))
    emulated.issue_certificates()
    with key_server(emulated) as url:
        yield Site(emulated, tmp_path, url)


def prove(
    host: Site, *options: str, door: tuple[str, ...] = (), ask: tuple[str, ...] = ASK
) -> subprocess.CompletedProcess[str]:
    first, *others = host.arguments("prove", *options, "--", *ask)
    return host.emulated.run(first, "--with-guest", *door, *others)


def report_of(made: subprocess.CompletedProcess[str]) -> Any:
    """Return the report, which must say that it is not about hardware."""
    report = documented("host prove", made.stdout)
    assert [claim["id"] for claim in report["claims"]] == [claim.id for claim in CLAIMS]
    assert report["hardware"] is False
    if report["root"] is not None:
        assert report["root"] == {"name": "ARK-Genoa EMULATED", "amd": False}
    assert showings(report)["hardware"] == "not-tried"
    return report


def showings(report: Any) -> dict[str, str]:
    return {claim["id"]: claim["showing"] for claim in report["claims"]}


def differing(report: Any) -> set[str]:
    return {name for name, showing in showings(report).items() if showing == "differs"}


def observation(report: Any, name: str) -> Any:
    (found,) = (
        each for claim in report["claims"] for each in claim["observations"] if each["id"] == name
    )
    return found


def test_the_emulated_host_shows_what_is_claimed(host: Site) -> None:
    output, text = host.folder / "report.json", host.folder / "report.txt"
    lowered = host.lowered()
    made = prove(
        host,
        *("--vmm", NOISY, "--update", lowered),
        *("-o", str(output), "--text", str(text), "--json"),
    )
    assert made.returncode == 0, made.stdout + made.stderr
    report = report_of(made)
    assert output.read_text() == made.stdout
    seen = {name for name, showing in showings(report).items() if showing == "seen"}
    assert seen >= {"numbers", "vmgexit", "certificates", "certificate-path", "firmware-platform"}
    for name in ("busy", "update", "set-config", "exit-number", "report-during-update"):
        assert observation(report, name)["showing"] == "seen", name
    assert report["chip_id"].endswith("...")
    assert len(report["chip_id"]) == 19
    words = text.read_text()
    assert (
        "Its reports verify with the root ARK-Genoa EMULATED, which is not AMD's, so the "
        "observations say nothing about hardware." in words
    )
    assert host.lowered() == lowered, "the reported TCB must be what it was"


@only_in_full
def test_a_vmm_that_knows_nothing_of_certificates_gets_the_shim(host: Site, tmp_path: Path) -> None:
    shim_library()  # installed with every compiler
    source = Path(__file__).parents[1] / "shim" / "plain_vmm.c"
    vmm = build(tmp_path / "plain_vmm", source, "-pthread")
    made = prove(host, "--vmm", f"{vmm} 1", "--json")
    assert made.returncode == 0, made.stderr
    report = report_of(made)
    assert observation(report, "exit-number")["detail"] == "KVM requested certificates with exit 43"
    assert observation(report, "busy")["showing"] == "seen"


@only_in_full
def test_another_exit_number_differs(host: Site) -> None:
    made = prove(host, "--vmm", BUILT_IN, "--json", door=("--exit-number", "42"))
    assert made.returncode == 1, made.stderr
    report = report_of(made)
    assert differing(report) == {"numbers"}
    detail = observation(report, "exit-number")["detail"]
    assert detail == "KVM requested certificates with exit 42, expected 43"


def test_a_vmm_without_the_lock_differs(host: Site) -> None:
    program = host.folder / "vmm.py"
    program.write_text(WITHOUT_LOCK)
    made = prove(host, "--vmm", shlex.join((sys.executable, str(program), "{certs}")), "--json")
    assert made.returncode == 1, made.stderr
    report = report_of(made)
    assert differing(report) == {"certificate-path"}
    assert "the VMM does not take the lock" in observation(report, "busy")["detail"]


@only_in_full
def test_another_signing_key_differs(host: Site) -> None:
    """After a re-initialisation, the published firmware signs with the current TCB's key."""
    host.done("sync")
    host.done("set-config", "--reported-tcb", host.lowered())
    assert host.emulated.run("firmware", "reload").returncode == 0
    made = prove(host, "--vmm", BUILT_IN, "--json")
    assert made.returncode == 1, made.stderr
    report = report_of(made)
    assert differing(report) == {"firmware-platform"}
    assert " but the firmware's status implies " in observation(report, "signing-key")["detail"]


@only_in_full
def test_a_guest_that_gives_no_report_leaves_a_report_of_what_was_seen(host: Site) -> None:
    made = prove(host, "--json", ask=("false",))
    assert made.returncode == 1, made.stderr
    report = report_of(made)
    assert report["root"] is None
    assert differing(report) == set()
    assert "ended with exit code 1" in observation(report, "extended-request")["detail"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--vmm", "no-such-vmm-anywhere {certs}"), 2, "no such program"),
        (("--vmm", "'"), 2, "--vmm: No closing quotation"),
        (("--vmm", ""), 2, "--vmm: expected a command line"),
        (("--update", "nonsense"), 2, "--update nonsense"),
        (("-o", "/nowhere/report.json"), 1, "cannot write /nowhere/report.json"),
    ],
)
def test_wrong_use_is_one_line(
    options: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["host", "prove", *options, "--", "true"]) == code
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) <= 2


@only_in_full
def test_a_signal_ends_the_vmm_and_the_command_as_well(host: Site) -> None:
    pids = host.folder / "pids"
    os.mkfifo(pids)
    ask = ("sh", "-c", f'echo $$ $PPID > "{pids}"; exec sleep 600')
    first, *others = host.arguments("prove", "--vmm", "sh -c 'exec sleep 600' {certs}", "--", *ask)
    argv = host.emulated.command(first, "--with-guest", *others)
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        hand_over, prover = map(int, pids.read_text().split())
        vmms = Path(f"/proc/{prover}/task/{prover}/children").read_text().split()
        ended = [os.pidfd_open(int(pid)) for pid in {str(hand_over), *vmms}]
        os.kill(prover, signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        for each in ended:
            assert select.select([each], [], [], 60)[0], "must end the VMM and the command"
            os.close(each)


@only_in_full
def test_a_killed_command_ends_the_vmm(host: Site) -> None:
    pids = host.folder / "pids"
    os.mkfifo(pids)
    vmm = f"""sh -c 'echo $$ $PPID > "{pids}"; exec sleep 600' {{certs}}"""
    first, *others = host.arguments("prove", "--vmm", vmm, "--", "sleep", "600")
    argv = host.emulated.command(first, "--with-guest", *others)
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        started, prover = map(int, pids.read_text().split())
        ended = os.pidfd_open(started)
        os.kill(prover, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        assert select.select([ended], [], [], 60)[0], "must end the VMM"
        os.close(ended)


@only_in_full
def test_a_signal_during_the_update_takes_the_update_back(host: Site, tmp_path: Path) -> None:
    lowered = host.lowered()
    prover, answers = tmp_path / "prover", tmp_path / "answers"
    os.mkfifo(prover)
    answers.touch()
    # The third report is requested during the update; instead of answering, the command sleeps.
    ask = f"""
        if [ $(wc -l < {answers}) = 2 ]; then echo $PPID > {prover}; exec sleep 600; fi
        {shlex.join(ASK)} && echo answered >> {answers}
    """
    options = ("--vmm", BUILT_IN, "--update", lowered)
    first, *others = host.arguments("prove", *options, "--", "sh", "-c", ask)
    argv = host.emulated.command(first, "--with-guest", *others)
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        pid = int(prover.read_text())
        while host.lowered() == lowered:
            assert process.poll() is None
        os.kill(pid, signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert host.lowered() == lowered, "the reported TCB must be what it was"
