# SPDX-License-Identifier: Apache-2.0
"""``snpcerts emulate`` as a user runs it: real programs, one machine shared by many commands."""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snpcerts.cli.main import main
from tests.documented_json import documented

from ..emulated import SNPCERTS, Emulated

OPEN = "import os; print(os.open({path!r}, os.O_RDWR) >= 0)"
STATUS = (
    "from snpcerts.host.sev import Sev\n"
    "with Sev() as sev: print(sev.snp_platform_status().reported_tcb.hex(), sev.hwid().hex())\n"
)
LOWER = (
    "from dataclasses import replace\n"
    "from snpcerts.abi.psp import SnpConfig\n"
    "from snpcerts.host.sev import Sev\n"
    "with Sev() as sev:\n"
    "    tcb = bytearray(sev.snp_platform_status().reported_tcb)\n"
    "    tcb[7] -= 1\n"
    "    sev.snp_set_config(SnpConfig(reported_tcb=bytes(tcb)))\n"
    "    print(sev.snp_platform_status().reported_tcb.hex())\n"
)


@pytest.fixture(scope="module")
def emulated(emulated: Emulated) -> Emulated:
    """The platform; each command is started as a user starts it."""
    return emulated.started_anew()


def test_the_machine_outlives_the_command(emulated: Emulated) -> None:
    before = emulated.python(["host"], STATUS).stdout.split()
    lowered = emulated.python(["host"], LOWER).stdout.split()
    after = emulated.python(["host"], STATUS).stdout.split()
    assert before[1] == after[1], "the same chip"
    assert lowered[0] == after[0] != before[0]
    shown = documented("emulate status", emulated.run("status", "--json").stdout)
    assert shown["reported_tcb"] == after[0]
    assert shown["vms"] == []


def test_a_command_is_on_disk_before_its_caller_continues(emulated: Emulated) -> None:
    """A program that reads the platform's directory after a command finds the command's effect."""
    look = (
        "import json; from pathlib import Path\n"
        f"print(json.loads(Path({str(emulated.directory)!r}, 'platform.json').read_text()))\n"
    )
    reported, saved = emulated.python(["host"], LOWER + look).stdout.split(maxsplit=1)
    assert reported in saved


def test_a_throw_away_machine_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    argv = [*SNPCERTS, "emulate", "host", "--", sys.executable, "-c", STATUS]
    made = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60)
    assert made.returncode == 0, made.stderr
    # The server removes the directory when no program is left.
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and str(tmp_path).encode() in _command_line(process):
            _wait_for_end_of(int(process.name))
    assert list(tmp_path.iterdir()) == []


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _wait_for_end_of(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([handle], [], [], 30)[0]
    os.close(handle)


def test_the_exit_code_is_the_programs(emulated: Emulated) -> None:
    assert emulated.run("host", "--", "sh", "-c", "exit 7").returncode == 7


def test_a_signal_ends_the_program_as_it_would_without(emulated: Emulated) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    assert emulated.python(["host"], program).returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("role", "path", "there"),
    [
        ("host", "/dev/sev", True),
        ("host", "/dev/kvm", True),
        ("host", "/dev/sev-guest", False),
    ],
)
def test_the_host_sees_the_hosts_devices(
    emulated: Emulated, role: str, path: str, there: bool
) -> None:
    made = emulated.python([role], OPEN.format(path=path))
    assert (made.returncode == 0) is there, made.stderr


def test_a_guest_gets_a_report_with_the_certificates_its_vmm_serves(
    emulated: Emulated, tmp_path: Path
) -> None:
    emulated.issue_certificates()
    report, table = tmp_path / "report.bin", tmp_path / "table.bin"
    argv = ["guest", "report", "-o", str(report), "--table-out", str(table), "--report-data", "ab"]
    served = str(emulated.certs / "table.bin")
    made = emulated.run("guest", "--certs", served, "--", *SNPCERTS, *argv)
    assert made.returncode == 0, made.stderr
    assert table.read_bytes() == (emulated.certs / "table.bin").read_bytes()
    anchor = str(emulated.certs / "ark.der")
    assert main(["verify", str(report), "--table", str(table), "--anchor", anchor]) == 0
    # A verifier without --anchor does not trust the emulated ARK.
    assert main(["verify", str(report), "--table", str(table)]) == 1


def test_a_report_without_certificates_and_json(emulated: Emulated, tmp_path: Path) -> None:
    report = tmp_path / "report.bin"
    argv = [*SNPCERTS, "guest", "report", "-o", str(report), "--json", "--vmpl", "2"]
    served = str(emulated.certs / "table.bin")
    made = emulated.run("guest", "--certs", served, "--", *argv)
    answer = json.loads(made.stdout)
    assert report.read_bytes()[0x50:0x90].hex() == answer["report_data"]
    assert report.read_bytes()[0x30] == 2
    assert answer["table"] is None


def test_the_host_of_a_guest_plays_the_linux_release_that_was_asked_for(
    emulated: Emulated,
) -> None:
    emulated.issue_certificates()
    served = str(emulated.certs / "table.bin")
    look = emulated.command("status", "--json")
    made = emulated.run("guest", "--certs", served, "--kernel", "7.2", "--", *look)
    (vm,) = documented("emulate status", made.stdout)["vms"]
    assert (vm["kernel"], vm["serves"]) == ("7.2", True)


def test_a_guest_attaches_to_the_vm_of_a_vmm_in_another_terminal(
    emulated: Emulated, tmp_path: Path
) -> None:
    emulated.issue_certificates()
    served = str(emulated.certs / "table.bin")
    program = [sys.executable, "-P", "-m", "snpcerts.emulator.machine.vmm_program", served]
    vmm = subprocess.Popen(emulated.command("host", "--serve", "--", *program))
    try:
        name = _vm_of(emulated, vmm)
        report, table = tmp_path / "report.bin", tmp_path / "table.bin"
        argv = [*SNPCERTS, "guest", "report", "-o", str(report), "--table-out", str(table)]
        made = emulated.run("guest", "--vm", name, "--", *argv)
        assert made.returncode == 0, made.stderr
        assert table.read_bytes() == Path(served).read_bytes()
    finally:
        vmm.kill()
        vmm.wait()
    assert emulated.run("guest", "--vm", name, "--", "true").returncode == 1


def _vm_of(emulated: Emulated, vmm: subprocess.Popen[bytes]) -> str:
    for _ in range(200):
        assert vmm.poll() is None
        for vm in documented("emulate status", emulated.run("status", "--json").stdout)["vms"]:
            if vm["pid"] == vmm.pid and vm["serves"]:
                assert vm["kernel"] == "7.3", "must be the newest by default"
                return str(vm["name"])
    raise AssertionError("the VMM has no VM")


def test_a_killed_vmm_leaves_no_vm_and_no_lock(emulated: Emulated) -> None:
    emulated.issue_certificates()
    served = str(emulated.certs / "table.bin")
    program = [sys.executable, "-P", "-m", "snpcerts.emulator.machine.vmm_program", served]
    vmm = subprocess.Popen(emulated.command("host", "--serve", "--", *program))
    _vm_of(emulated, vmm)
    vmm.kill()
    vmm.wait()
    for _ in range(200):
        if not json.loads(emulated.run("status", "--json").stdout)["vms"]:
            break
    else:
        pytest.fail("the VM is still there")
    assert main(["lock", served, "--seconds", "0"]) == 0


def test_scripted_guests_report_their_outcomes(emulated: Emulated, tmp_path: Path) -> None:
    emulated.issue_certificates()
    served, outcomes = str(emulated.certs / "table.bin"), tmp_path / "outcomes.jsonl"
    program = [sys.executable, "-P", "-m", "snpcerts.emulator.machine.vmm_program", served]
    options = ["--requests", "3", "--pages", "0", "--pause", "0.001", "--outcomes", str(outcomes)]
    made = emulated.run("host", *options, "--", *program)
    assert made.returncode == 0, made.stderr
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    assert [line["errno"] for line in lines] == [0, 0, 0]
    assert [line["tries"] for line in lines] == [2, 1, 1], "must retry after a buffer of 0 pages"
    table = Path(served).read_bytes()
    assert all(base64.b64decode(line["table"]).startswith(table) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["host"], 2, "Missing argument"),
        (["host", "--", "no-such-program-at-all"], 2, "no such program"),
        (
            ["host", "--serve", "--requests", "1", "--", "true"],
            2,
            "cannot be combined with --requests",
        ),
        (["guest", "--", "true"], 1, "one running VM"),
        (["guest", "--vm", "nobody", "--", "true"], 1, "there is no VM 'nobody'"),
        (["guest", "--certs", "missing", "--", "true"], 2, "No such file"),
        (["guest", "--certs", "x", "--vm", "y", "--", "true"], 2, "cannot be combined"),
        (["guest", "--kernel", "7.2", "--", "true"], 2, "--kernel can only be used with"),
        (["certificates", "/dev/null/x"], 1, "cannot create"),
    ],
)
def test_wrong_use_is_reported_in_one_line(
    emulated: Emulated, arguments: list[str], code: int, message: str
) -> None:
    made = emulated.run(*arguments)
    assert made.returncode == code, made.stderr
    assert message in made.stderr
    assert "Traceback" not in made.stderr


def test_a_product_that_is_not_the_machines_is_refused(emulated: Emulated) -> None:
    argv = [*SNPCERTS, "emulate", "--platform", str(emulated.directory), "--product", "turin"]
    made = subprocess.run([*argv, "status"], capture_output=True, text=True)
    assert made.returncode == 2
    assert "is a Milan platform, not Turin" in made.stderr


@pytest.mark.parametrize("content", ["", "{}", "[]", "no json", '{"product": 7}'])
def test_a_damaged_platform_is_reported_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "platform.json").write_text(content)
    argv = [*SNPCERTS, "emulate", "--platform", str(tmp_path), "status"]
    made = subprocess.run(argv, capture_output=True, text=True)
    assert made.returncode in (1, 2)
    assert "Traceback" not in made.stderr
    assert made.stderr.startswith("snpcerts: ")


def test_the_files_of_the_host_agree_with_its_firmware(emulated: Emulated) -> None:
    """``smt/active`` says that SMT is on, as reports do; a guest_memfd has the requested size."""
    script = (
        "import fcntl, os\n"
        "from snpcerts.abi.kvm import CreateGuestMemfd, Ioctl\n"
        "print(open('/sys/devices/system/cpu/smt/active').read().strip())\n"
        "vm = fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), Ioctl.CREATE_VM, 4)\n"
        "wanted = bytearray(CreateGuestMemfd(size=3 << 20).pack())\n"
        "print(os.fstat(fcntl.ioctl(vm, Ioctl.CREATE_GUEST_MEMFD, wanted)).st_size)\n"
    )
    assert emulated.python(["host"], script).stdout.split() == ["1", str(3 << 20)]


def test_a_vmm_may_have_more_interrupts_than_the_shell_allows_files() -> None:
    """The server inherits the shell's limit on files, but must keep a duplicate of each eventfd."""
    script = (
        "import fcntl, os, resource\n"
        "from snpcerts.abi.kvm import Ioctl, Irqfd\n"
        "most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n"
        "vm = fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), Ioctl.CREATE_VM, 4)\n"
        "fcntl.ioctl(vm, Ioctl.CREATE_IRQCHIP, 0)\n"
        "for _ in range(200):\n"
        "    fcntl.ioctl(vm, Ioctl.IRQFD, Irqfd(os.eventfd(0), 5).pack())\n"
        "print('tied')\n"
    )
    argv = [*SNPCERTS, "emulate", "host", "--", sys.executable, "-c", script]  # a server of its own
    shell = ["sh", "-c", 'ulimit -Sn 100 && exec "$@"', "sh", *argv]
    made = subprocess.run(shell, capture_output=True, text=True, timeout=120)
    assert made.stdout == "tied\n", made.stderr


def test_an_eventfd_can_be_tied_to_one_interrupt_only(emulated: Emulated) -> None:
    script = (
        "import errno, fcntl, os\n"
        "from snpcerts.abi.kvm import Ioctl, Irqfd\n"
        "vm = fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), Ioctl.CREATE_VM, 4)\n"
        "fcntl.ioctl(vm, Ioctl.CREATE_IRQCHIP, 0)\n"
        "one, other = os.eventfd(0), os.eventfd(0)\n"
        "for fd in (one, other, one):\n"
        "    try:\n"
        "        fcntl.ioctl(vm, Ioctl.IRQFD, Irqfd(fd, 5).pack())\n"
        "        print('tied')\n"
        "    except OSError as error:\n"
        "        print(errno.errorcode[error.errno])\n"
    )
    assert emulated.python(["host"], script).stdout.split() == ["tied", "tied", "EBUSY"]


def test_the_platform_may_be_named_after_the_subcommand(emulated: Emulated) -> None:
    where = str(emulated.directory)
    before = emulated.run("status").stdout
    argv = [*SNPCERTS, "emulate", "status", "--platform", where]
    environment = os.environ | {"SNPCERTS_PLATFORM": "/nowhere"}
    after = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60)
    assert after.stdout == before
    assert "reported TCB  bootloader=" in before
    assert emulated.run("host", "--platform", where, "--", "true").returncode == 0
    twice = emulated.run("status", "--platform", "/another")
    assert (twice.returncode, "given twice" in twice.stderr) == (2, True)
    assert not Path("/another").exists()
