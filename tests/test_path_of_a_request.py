# SPDX-License-Identifier: Apache-2.0
"""The path of one request, end to end: guest, GHCB, KVM, exit, file, firmware, guest, verifier."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.kvm import ExitReason
from snpcerts.abi.product import Product
from snpcerts.abi.psp import SnpConfig
from snpcerts.abi.report import Report
from snpcerts.abi.tcb import TcbVersion
from snpcerts.certfile.file import CertFile
from snpcerts.cli.main import main
from snpcerts.demo.demo_host import EmulatedHost
from snpcerts.emulator.guest.scripted import ReportOutcome, ScriptedGuest
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.machine.in_process import Machine
from snpcerts.emulator.machine.reference_vmm import ReferenceVm, build_vm
from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.errors import RefusedError
from snpcerts.verify.collateral import Collateral
from snpcerts.verify.judging import verify
from snpcerts.verify.verdict import Status
from snpcerts.vmm.enable import enable_req_certs, supports_req_certs
from snpcerts.vmm.exit_service import ExitService, Outcome, Served
from snpcerts.vmm.guest_memory import MappedMemory

from .keys import authority_of


@pytest.fixture(scope="module")
def host() -> EmulatedHost:
    firmware = Firmware(Chip.create(Product.MILAN))
    return EmulatedHost.of(firmware, authority_of(Product.MILAN), tcbs=2)


def report_as(host: EmulatedHost, tcb: TcbVersion) -> CertTable:
    """Make the firmware report ``tcb``; return the table for that."""
    host.firmware.snp_set_config(SnpConfig(reported_tcb=tcb.pack()))
    return host.table()


class Vm:
    """One guest with a VMM around it that serves certificates from ``path``."""

    def __init__(self, host: EmulatedHost, path: Path, *, reports: int, **guest: object) -> None:
        self.outcomes: list[ReportOutcome] = []

        def boot(vm: object) -> ScriptedGuest:
            return ScriptedGuest(
                vm,  # type: ignore[arg-type]
                reports=reports,
                busy_delay=0.001,
                on_report=self.outcomes.append,
                **guest,  # type: ignore[arg-type]
            )

        self.machine = Machine(Platform(host.firmware), guest=boot)
        self.vm: ReferenceVm = build_vm(self.machine)
        self.service = ExitService(CertFile(str(path)), lock_wait=0.01)
        self.memory = MappedMemory([(0, memoryview(self.vm.memory))])
        self.answers: list[Served] = []

    def play(self, after_answer: Callable[[Served], None] = lambda _: None) -> None:
        """Run the guest to its shutdown."""
        while True:
            self.vm.run()
            if self.vm.runs[0].exit_reason == ExitReason.SHUTDOWN:
                return
            assert self.vm.runs[0].exit_reason == ExitReason.SNP_REQ_CERTS
            served = self.service.serve(self.vm.runs[0], self.memory, self.vm.run)
            self.answers.append(served)
            after_answer(served)


def verdict_of(outcome: ReportOutcome, host: EmulatedHost) -> Status:
    collateral = Collateral.from_table(CertTable.decode(outcome.table))
    anchors = (host.anchor,)
    return verify(outcome.report, collateral, anchors=anchors, at=datetime.now(UTC)).status


def test_a_report_verifies_with_the_table_that_came_with_it(
    host: EmulatedHost, tmp_path: Path
) -> None:
    path = tmp_path / "certs.bin"
    CertFile(str(path)).publish(host.table())
    vm = Vm(host, path, reports=2)
    vm.play()
    assert [served.outcome for served in vm.answers] == [Outcome.SERVED] * 2
    assert [verdict_of(outcome, host) for outcome in vm.outcomes] == [Status.VERIFIED] * 2


def test_the_key_changes_underneath_and_the_next_report_still_matches(
    host: EmulatedHost, tmp_path: Path
) -> None:
    path = tmp_path / "certs.bin"
    certs = CertFile(str(path))
    certs.publish(host.table())
    vm = Vm(host, path, reports=4)

    def update(_: Served) -> None:
        now = host.reported_tcb()
        other = next(tcb for tcb in host.tcbs if tcb != now)
        certs.update(lambda: report_as(host, other))

    vm.play(update)
    assert [verdict_of(outcome, host) for outcome in vm.outcomes] == [Status.VERIFIED] * 4
    assert len({host.tcb_of(Report.unpack(outcome.report)) for outcome in vm.outcomes}) == 2


def test_a_stale_table_is_noticed(host: EmulatedHost, tmp_path: Path) -> None:
    """The signing key changes but the file does not, so the verifier must refuse the report."""
    path = tmp_path / "certs.bin"
    CertFile(str(path)).publish(host.table())
    vm = Vm(host, path, reports=1)
    now = host.reported_tcb()
    report_as(host, next(tcb for tcb in host.tcbs if tcb != now))
    vm.play()
    assert verdict_of(vm.outcomes[0], host) is Status.REFUSED


def test_a_guest_with_too_small_a_buffer_comes_back_with_a_larger_one(
    host: EmulatedHost, tmp_path: Path
) -> None:
    path = tmp_path / "certs.bin"
    CertFile(str(path)).publish(host.table())
    vm = Vm(host, path, reports=1, first_pages=0)
    vm.play()
    assert [(s.outcome, s.needed_pages) for s in vm.answers] == [
        (Outcome.TOO_SMALL, host.table().pages),
        (Outcome.SERVED, None),
    ]
    assert verdict_of(vm.outcomes[0], host) is Status.VERIFIED


def test_without_a_file_the_guest_gets_a_report_and_an_empty_table(
    host: EmulatedHost, tmp_path: Path
) -> None:
    """The guest also keeps its VMPCK, so its second request succeeds too."""
    vm = Vm(host, tmp_path / "missing", reports=2)
    vm.play()
    assert [CertTable.decode(outcome.table) for outcome in vm.outcomes] == [CertTable()] * 2
    assert all(outcome.report for outcome in vm.outcomes)


def test_eio_costs_a_linux_guest_its_key(host: EmulatedHost, tmp_path: Path) -> None:
    """This is why an empty table is the default."""
    vm = Vm(host, tmp_path / "missing", reports=2)
    vm.service = ExitService(CertFile(str(tmp_path / "missing")), on_error="eio")
    vm.play()
    assert len(vm.outcomes) == 1
    assert not vm.outcomes[0].report


def test_busy_while_the_lock_is_held_and_served_after_its_release(
    host: EmulatedHost, tmp_path: Path
) -> None:
    path = tmp_path / "certs.bin"
    CertFile(str(path)).publish(host.table())
    holder = subprocess.Popen(
        [sys.executable, "-u", "-m", "snpcerts", "lock", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdout is not None
    assert "exclusive lock held" in holder.stdout.readline()
    vm = Vm(host, path, reports=1)

    def release(_: Served) -> None:
        if len(vm.answers) == 3:
            holder.kill()
            holder.communicate()

    vm.play(release)
    outcomes = [served.outcome for served in vm.answers]
    assert outcomes[:3] == [Outcome.BUSY] * 3
    assert outcomes[-1] is Outcome.SERVED
    assert verdict_of(vm.outcomes[0], host) is Status.VERIFIED


def test_genuine_certificates_arrive_byte_for_byte_and_verify_the_genuine_report(
    host: EmulatedHost, tmp_path: Path, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    milan = vectors / "milan"
    table = tmp_path / "table.bin"
    options = [
        word
        for name in ("vcek", "ask", "ark")
        for word in (f"--{name}", str(milan / f"{name}.der"))
    ]
    assert main(["table", "build", "-o", str(table), *options]) == 0
    vm = Vm(host, table, reports=1)
    vm.play()
    received = vm.outcomes[0].table
    assert received[: table.stat().st_size] == table.read_bytes()
    assert not any(received[table.stat().st_size :])
    delivered = tmp_path / "delivered.bin"
    delivered.write_bytes(received)
    argv = ["verify", str(milan / "report.bin"), "--table", str(delivered)]
    assert main([*argv, "--at", "2024-01-01T00:00:00Z"]) == 0
    capsys.readouterr()


def test_a_vmm_can_find_out_and_enable_the_exit(host: EmulatedHost) -> None:
    machine = Machine(Platform(host.firmware))
    kvm_fd = machine.open("/dev/kvm")
    assert supports_req_certs(kvm_fd, machine.ioctl)
    older = Machine(Platform(host.firmware, certs_supported=False))
    assert not supports_req_certs(older.open("/dev/kvm"), older.ioctl)
    without_snp = Machine(Platform(host.firmware, snp=False))
    assert not supports_req_certs(without_snp.open("/dev/kvm"), without_snp.ioctl)
    with pytest.raises(RefusedError, match="no vCPU yet"):
        enable_req_certs(build_vm(machine).fd, machine.ioctl)
