# SPDX-License-Identifier: Apache-2.0
"""Measures an emulated KVM_RUN, and a served certificate exit, with and without a front door.

Behind the front door, the VMM is a process that makes real system calls. Without it, the same VMM
runs in the emulator's own process.
"""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench.compare import Skip, compare
from snpcerts.abi.product import Product
from snpcerts.certfile.file import CertFile
from snpcerts.demo.demo_host import EmulatedHost
from snpcerts.emulator.frontdoor import seccomp
from snpcerts.emulator.guest.script import GuestScript
from snpcerts.emulator.guest.scripted import ScriptedGuest
from snpcerts.emulator.kvm.platform import Platform
from snpcerts.emulator.machine.enter import host_program
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.machine.in_process import Machine
from snpcerts.emulator.machine.reference_vmm import KernelCalls, build_vm
from snpcerts.emulator.machine.vmm_program import SystemCalls
from snpcerts.errors import SnpCertsError
from snpcerts.vmm.exit_service import ExitService
from snpcerts.vmm.guest_memory import MappedMemory

REQUESTS = 200
RUNS = 2000


def main() -> None:
    """Print microseconds per KVM_RUN and per request."""
    try:
        seccomp.check()
    except SnpCertsError as error:
        raise Skip(str(error)) from None
    with tempfile.TemporaryDirectory() as folder:
        home = PlatformHome(Path(folder) / "platform")
        home.prepare(Product.MILAN)
        host = EmulatedHost.of(home.firmware(), home.authority(), tcbs=1)
        file = Path(folder) / "certs.bin"
        CertFile(str(file)).publish(host.table())

        def behind_the_door(what: str) -> float:
            program = [sys.executable, "-m", "bench.emulated_vm", what, str(file)]
            argv = host_program(home, program, GuestScript(requests=REQUESTS))
            made = subprocess.run(argv, capture_output=True, text=True, check=True)
            return float(made.stdout)

        def in_process(what: str) -> float:
            platform = Platform(host.firmware)
            return measured(
                Machine(platform, guest=lambda vm: ScriptedGuest(vm, reports=REQUESTS)),
                what,
                str(file),
            )

        for what, title in (
            ("run", "KVM_RUN after the guest's last request"),
            ("serve", "certificate exit"),
        ):
            compare(
                title,
                {
                    "no door, one process": partial(in_process, what),
                    "behind the front door": partial(behind_the_door, what),
                },
                unit="us",
                scale=1e6,
                rounds=3,
            )


def measured(kernel: KernelCalls, what: str, path: str) -> float:
    """Run a VM in this process. If ``what`` is "serve", return the mean seconds per served request,
    otherwise the mean seconds per KVM_RUN after the guest's last request.
    """
    vm = build_vm(kernel)
    service = ExitService(CertFile(path))
    memory = MappedMemory([(vm.base, memoryview(vm.memory))])
    run = vm.runs[0]
    start = time.perf_counter()
    while True:
        vm.run()
        if not run.asks_for_certs:
            break
        served = service.serve(run, memory, vm.run)
        assert (served.ret, served.run_errno) == (0, errno.EINTR), served
    seconds = (time.perf_counter() - start) / REQUESTS
    if what == "serve":
        return seconds
    start = time.perf_counter()
    for _ in range(RUNS):
        vm.run()
    return (time.perf_counter() - start) / RUNS


if __name__ == "__main__":
    print(measured(SystemCalls(), sys.argv[1], sys.argv[2]))
