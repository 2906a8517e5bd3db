# SPDX-License-Identifier: Apache-2.0
"""A VMM in Python that uses the exit service: ``python_vmm.py FILE VCPUS``.

On SIGTERM, it kicks its vCPUs and ends.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import sys
import threading

from snpcerts.abi.kvm import (
    MEM_GUEST_MEMFD,
    CreateGuestMemfd,
    ExitReason,
    Ioctl,
    UserspaceMemoryRegion2,
)
from snpcerts.certfile.file import CertFile
from snpcerts.emulator.machine.reference_vmm import MEMORY_SIZE, ReferenceVm, build_vm
from snpcerts.emulator.machine.vmm_program import SystemCalls
from snpcerts.vmm.enable import supports_req_certs
from snpcerts.vmm.exit_service import ExitService
from snpcerts.vmm.guest_memory import MappedMemory

MORE = 2 * MEMORY_SIZE


def main(path: str, vcpus: int) -> None:
    """Run a VM until it shuts down or SIGTERM comes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGUSR1, lambda *_: None)
    kernel = SystemCalls()
    kvm = kernel.open("/dev/kvm")
    vm = build_vm(kernel, vcpus=vcpus, certs=supports_req_certs(kvm))
    more = mmap.mmap(-1, MORE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memfd = kernel.ioctl(
        vm.fd, Ioctl.CREATE_GUEST_MEMFD, bytearray(CreateGuestMemfd(size=MORE).pack())
    )
    region = UserspaceMemoryRegion2(
        slot=1,
        flags=MEM_GUEST_MEMFD,
        guest_phys_addr=MEMORY_SIZE,
        memory_size=MORE,
        userspace_addr=ctypes.addressof((ctypes.c_char * MORE).from_buffer(more)),
        guest_memfd=memfd,
    )
    kernel.ioctl(vm.fd, Ioctl.SET_USER_MEMORY_REGION2, bytearray(region.pack()))
    vm.set_private(MEMORY_SIZE, MORE, private=True)
    memory = MappedMemory([(0, memoryview(vm.memory)), (MEMORY_SIZE, memoryview(more))])
    service = ExitService(CertFile(path))
    stopping = threading.Event()
    threads = [
        threading.Thread(target=run_vcpu, args=(vm, number, service, memory, stopping))
        for number in range(vcpus)
    ]
    for thread in threads:
        thread.daemon = True
        thread.start()
    threading.Thread(target=stop, args=(vm, threads, stopping), daemon=True).start()
    for thread in threads:
        thread.join()


def run_vcpu(
    vm: ReferenceVm,
    number: int,
    service: ExitService,
    memory: MappedMemory,
    stopping: threading.Event,
) -> None:
    """Run one vCPU until it shuts down or ``stopping`` is set."""
    run, served = vm.runs[number], None
    while not stopping.is_set():
        try:
            if served is None or served.run_errno != 0:  # no exit is waiting to be handled
                vm.run_once(number)
        except InterruptedError:
            continue
        served = None
        if run.exit_reason == ExitReason.HYPERCALL:
            vm.change_page_state(number)
        elif run.asks_for_certs:
            served = service.serve(run, memory, vm.vcpus[number])
        else:
            return


def stop(vm: ReferenceVm, threads: list[threading.Thread], stopping: threading.Event) -> None:
    """Wait for SIGTERM, then kick every vCPU."""
    signal.sigwait({signal.SIGTERM})
    stopping.set()
    for run, thread in zip(vm.runs, threads, strict=True):
        run.immediate_exit = 1
        if thread.ident is not None and thread.is_alive():
            signal.pthread_kill(thread.ident, signal.SIGUSR1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
