# SPDX-License-Identifier: Apache-2.0
"""An unmodified VMM in C launches guests on the emulated KVM and serves them certificates."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from snpcerts.abi.product import Product
from snpcerts.emulator.frontdoor.door import Door
from snpcerts.emulator.frontdoor.spawn import spawn
from snpcerts.emulator.guest.scripted import ReportOutcome, ScriptedGuest
from snpcerts.emulator.guest.sev_guest_device import SevGuestDevice
from snpcerts.emulator.kvm.kvm_device import KvmDevice
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.psp.chip import Chip
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.psp.sev_device import SevDevice

from .conftest import Stage, build

ATTEST = """
from snpcerts.guest.dev_sev_guest import SevGuest
with SevGuest() as device:
    for number in range(3):
        got = device.extended_report(bytes([number]) * 64)
        print(len(got.report), got.report[80:82].hex(), bytes(got.table[24:36]).decode())
"""
TABLE = bytes(24) + b"certificates would be here"


@pytest.fixture(scope="module")
def vmm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled VMM."""
    return build(tmp_path_factory.mktemp("vmm"), "vmm.c")


@pytest.mark.parametrize("vcpus", [1, 4])
def test_a_vmm_serves_certificates_to_its_guest(
    stage: Stage, vmm: Path, tmp_path: Path, vcpus: int
) -> None:
    (tmp_path / "table").write_bytes(TABLE)
    outcomes: list[ReportOutcome] = []
    platform = Platform(Firmware(Chip.create(Product.GENOA)))
    guest = partial(ScriptedGuest, reports=3, on_report=outcomes.append)
    door = Door(
        {
            "/dev/kvm": lambda _: KvmDevice(platform, guest),
            "/dev/sev": lambda _: SevDevice(platform.firmware),
        }
    )
    running = spawn(
        [str(vmm), str(tmp_path / "table"), str(vcpus)],
        stage.supervisor,
        door,
        stdout=subprocess.PIPE,
        way=stage.way,
    )
    assert stage.finish(running) == ["shut", "down"]
    assert len(outcomes) == 3 * vcpus
    for outcome in outcomes:
        assert outcome.succeeded, outcome
        assert outcome.table.startswith(TABLE)
        assert outcome.report_data in outcome.report
    stage.serve(lambda: not stage.supervisor.devices)
    assert platform.vms == {}, "the VM must end with its last descriptor"


def test_a_program_in_the_guest_attests(stage: Stage, vmm: Path, tmp_path: Path) -> None:
    """VMM and program in the guest are ordinary programs, each behind its own door."""
    (tmp_path / "table").write_bytes(TABLE)
    platform = Platform(Firmware(Chip.create(Product.MILAN)))
    host = Door(
        {
            "/dev/kvm": lambda _: KvmDevice(platform),
            "/dev/sev": lambda _: SevDevice(platform.firmware),
        }
    )
    machine = spawn([str(vmm), str(tmp_path / "table")], stage.supervisor, host, way=stage.way)
    stage.serve(lambda: any(vm.guest for vm in platform.vms.values()))
    (vm,) = platform.vms.values()
    guest = Door({"/dev/sev-guest": lambda _: SevGuestDevice(vm)})
    program = spawn(
        [sys.executable, "-c", ATTEST],
        stage.supervisor,
        guest,
        stdout=subprocess.PIPE,
        way=stage.way,
    )
    assert stage.finish(program) == [
        word for number in range(3) for word in ("1184", f"{number:02x}" * 2, "certificates")
    ]
    machine.process.kill()
    stage.serve(lambda: not stage.supervisor.devices and machine.exit_code is not None)
    assert platform.vms == {}
