# SPDX-License-Identifier: Apache-2.0
"""configfs-tsm behind the front door, as programs in a guest use it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from snpcerts.abi.report import Report
from snpcerts.emulator.frontdoor import namespace

from ..emulated import SNPCERTS, Emulated

# Evaluates each argument; prints its value, or the name of the errno if it fails.
STEPS = """
import errno, os, sys
os.chdir("/sys/kernel/config/tsm/report")
def read(path):
    with open(path, "rb", buffering=0) as file:
        return file.read()
def write(path, data):
    with open(path, "wb", buffering=0) as file:
        return file.write(data)
for step in sys.argv[1:]:
    try:
        print(repr(eval(step)))
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.fixture(scope="module")
def emulated(emulated: Emulated) -> Emulated:
    """The platform; each command is started as a user starts it, so it also ends like a user's."""
    return emulated.started_anew()


@pytest.fixture(autouse=True)
def _served() -> None:
    if reason := namespace.missing():
        pytest.skip(reason)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this user may not open /dev/fuse, through which configfs-tsm is served")


def in_guest(emulated: Emulated, *argv: str) -> str:
    if not emulated.certs.exists():
        emulated.issue_certificates()
    served = str(emulated.certs / "table.bin")
    made = emulated.run("guest", "--certs", served, "--", *argv)
    assert made.returncode == 0, made.stderr
    return made.stdout


def steps(emulated: Emulated, *argv: str) -> list[str]:
    return in_guest(emulated, SNPCERTS[0], "-c", STEPS, *argv).splitlines()


def test_a_programs_system_calls_end_as_they_do_in_linux(emulated: Emulated) -> None:
    course = {
        "os.mkdir('a')": "None",
        "os.mkdir('a') ": "EEXIST",
        "os.mkdir('a/b')": "EPERM",
        "os.mkdir('../x')": "EPERM",
        "os.mkdir('x' * 256)": "ENAMETOOLONG",
        "read('a/generation')": r"b'0\n'",
        "read('a/provider')": r"b'sev_guest\n'",
        "read('a/outblob')": "EINVAL",
        "read('a/inblob')": "EACCES",
        "write('a/outblob', b'x')": "EACCES",
        "write('a/none', b'x')": "EACCES",
        "read('a/service_guid')": "ENOENT",
        "write('a/privlevel', b'7')": "EINVAL",
        "write('a/privlevel', b'0')": "1",
        "write('a/inblob', bytes(65))": "EFBIG",
        "write('a/inblob', bytes(64))": "64",
        # Linux also counts the refused write of 65 bytes, when the file is closed.
        "read('a/generation') ": r"b'3\n'",
        "len(read('a/outblob'))": "1184",
        "len(read('a/auxblob')) > 4096": "True",
        "os.unlink('a/inblob')": "EPERM",
        "os.rename('a', 'b')": "EPERM",
        "os.symlink('a', 'b')": "EPERM",
        "sorted(os.listdir('.'))": "['a']",
        "os.rmdir('a')": "None",
        "os.rmdir('a') ": "ENOENT",
        "os.rmdir('../report')": "EPERM",
        "os.listdir('.')": "[]",
    }
    assert dict(zip(course, steps(emulated, *course), strict=True)) == course


def test_our_client_gets_a_report_and_its_certificates(emulated: Emulated, tmp_path: Path) -> None:
    report, table = tmp_path / "report.bin", tmp_path / "table.bin"
    argv = ["--via", "configfs-tsm", "-o", str(report), "--table-out", str(table), "--vmpl", "1"]
    said = json.loads(in_guest(emulated, *SNPCERTS, "guest", "report", *argv, "--json"))
    assert (said["via"], said["table_entries"]) == ("configfs-tsm", 3)
    assert Report.unpack(report.read_bytes()).fields.vmpl == 1
    made = emulated.certs / "ark.der"
    argv = ["verify", "--anchor", str(made), "--certs", str(table), str(report)]
    assert "verified" in in_guest(emulated, *SNPCERTS, *argv)


def test_programs_of_one_guest_share_the_directory(emulated: Emulated) -> None:
    """A program started in the guest by another command sees the first one's entries."""
    emulated.issue_certificates()
    reports = "/sys/kernel/config/tsm/report"
    started = f"mkdir {reports}/mine; echo made; read _"
    served = str(emulated.certs / "table.bin")
    argv = emulated.command("guest", "--certs", served, "--", "sh", "-c", started)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "made\n"
        assert emulated.run("guest", "--", "ls", reports).stdout == "mine\n"
        first.stdin.close()


def test_what_a_program_wrote_counts_when_it_ends_without_closing(emulated: Emulated) -> None:
    """If the mount ends with the program, the kernel never reports that the file was closed."""
    emulated.issue_certificates()
    started = "mkdir /sys/kernel/config/tsm/report/mine; echo made; read _"
    writes = f"{STEPS}os.write(os.open('mine/inblob', os.O_WRONLY), bytes(64)); os._exit(0)"
    served = str(emulated.certs / "table.bin")
    argv = emulated.command("guest", "--certs", served, "--", "sh", "-c", started)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "made\n"
        for _ in range(3):
            assert emulated.python(["guest"], writes).returncode == 0
        shown = emulated.python(["guest"], f"{STEPS}print(read('mine/generation'))").stdout
        assert shown == "b'3\\n'\n"
        first.stdin.close()


def test_a_killed_program_ends_though_another_signal_came_first(emulated: Emulated) -> None:
    """A read that waits for a busy host is not interrupted by a signal, but SIGKILL ends it."""
    emulated.issue_certificates()
    table = emulated.certs / "table.bin"
    program = (
        f"{STEPS}import signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "os.mkdir('a'); write('a/inblob', bytes(64))\n"
        "file = open('a/outblob', 'rb', buffering=0)\n"
        "print(os.getpid(), flush=True); file.read()"
    )
    argv = emulated.command("guest", "--certs", str(table), "--", SNPCERTS[0], "-c", program)
    with table.open("r+b") as update, subprocess.Popen(argv, stdout=subprocess.PIPE) as guest:
        fcntl.lockf(update, fcntl.LOCK_EX)
        assert guest.stdout is not None
        pid = int(guest.stdout.readline())
        try:
            wait_for_state(pid, "S", call=READ)
            os.kill(pid, signal.SIGUSR1)
            wait_for_state(pid, "D", call=READ)  # the kernel has sent the message about it,
            assert emulated.run("status").returncode == 0  # and the emulator has received it
            os.kill(pid, signal.SIGKILL)
            guest.wait(20)
        finally:
            fcntl.lockf(update, fcntl.LOCK_UN)


READ = 0  # read(2), as /proc/PID/syscall shows it


def wait_for_state(pid: int, state: str, *, call: int) -> None:
    end = time.monotonic() + 60
    process = Path("/proc", str(pid))
    while True:
        calls = (process / "syscall").read_text().split()[0]
        found = (process / "stat").read_text().rpartition(")")[2].split()[0]
        if (found, calls) == (state, str(call)):
            return
        assert time.monotonic() < end, (found, calls)
        time.sleep(0.005)  # /proc tells no one when a state changes


def test_a_machine_without_fuse_says_so_in_its_log(emulated: Emulated) -> None:
    """/dev/sev-guest is there all the same."""
    emulated.issue_certificates()
    program = (
        "import sys\n"
        "from snpcerts.cli.main import main\n"
        "from snpcerts.emulator.frontdoor import namespace\n"
        "namespace._FUSE = '/dev/no-fuse'\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    argv = ["emulate", "--platform", str(emulated.directory), "guest", "--certs"]
    argv += [str(emulated.certs / "table.bin"), "--", "ls", "/dev/sev-guest", "/sys/kernel/config"]
    ran = subprocess.run(
        [SNPCERTS[0], "-c", program, *argv], capture_output=True, text=True, timeout=120
    )
    assert "/dev/sev-guest" in ran.stdout
    log = next(emulated.directory.glob("*.log")).read_text()
    assert "/sys/kernel/config is missing: /dev/no-fuse: No such file" in log
