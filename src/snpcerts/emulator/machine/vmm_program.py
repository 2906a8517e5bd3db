# SPDX-License-Identifier: Apache-2.0
"""The built-in VMM process: one SNP VM whose certificates come from a file.

It makes the same system calls as any VMM, and uses the library for VMMs in Python. It is started on
an emulated host as ``python -m snpcerts.emulator.machine.vmm_program FILE [PIDFD]``. ``PIDFD`` is
the number of an inherited pidfd. The VMM ends when the pidfd's process ends or, without ``PIDFD``,
when its parent ends.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from collections.abc import Callable

from snpcerts.abi.kvm import VCPU_MMAP_SIZE
from snpcerts.certfile.file import CertFile
from snpcerts.device_ioctl import ioctl
from snpcerts.emulator.machine.detached import end_with
from snpcerts.emulator.machine.reference_vmm import build_vm
from snpcerts.parent_process import end_with_parent
from snpcerts.vmm.exit_service import ExitService, Served
from snpcerts.vmm.guest_memory import MappedMemory
from snpcerts.vmm.preload import EXIT_TOLD, TELL_EXIT


class SystemCalls:
    """The real system calls of this process."""

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        """Open ``path`` with open(2) and return the descriptor."""
        return os.open(path, flags | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: int | bytearray = 0) -> int:
        """Call ioctl(2). If ``argument`` is a bytearray, the kernel writes its result into it."""
        return ioctl(fd, request, argument)

    def mmap_run(self, vcpu_fd: int) -> mmap.mmap:
        """Map and return a vCPU's kvm_run."""
        return mmap.mmap(vcpu_fd, VCPU_MMAP_SIZE)

    def close(self, fd: int) -> None:
        """Close ``fd`` with close(2)."""
        os.close(fd)


def run_vm(
    service: ExitService,
    *,
    at_exit: Callable[[int], None] = lambda _: None,
    before_reentry: Callable[[], None] = lambda: None,
    after: Callable[[Served], None] = lambda _: None,
) -> None:
    """Run one VM with one vCPU until it shuts down. ``service`` supplies the certificates.

    ``at_exit`` is called at each request with the exit reason, ``before_reentry`` between the
    answer and the KVM_RUN that carries it, and ``after`` when the request is over.
    """
    vm = build_vm(SystemCalls())
    memory = MappedMemory([(vm.base, memoryview(vm.memory))])
    run = vm.runs[0]

    def reenter() -> None:
        before_reentry()
        vm.run()

    while True:
        try:
            vm.run()
        except InterruptedError:
            continue
        if not run.asks_for_certs:
            return
        at_exit(run.exit_reason)
        after(service.serve(run, memory, reenter))


def main(arguments: list[str]) -> int:
    """Run a VM with the given certificate file. End when the given process ends or, if none is
    given, when the parent process ends.
    """
    path, *process = arguments
    if process:
        end_with(int(process[0]))
    else:
        end_with_parent(os.getppid(), signal.SIGTERM)
    said: list[int] = []

    def tell_exit(number: int) -> None:
        if TELL_EXIT in os.environ and not said:
            said.append(number)
            print(EXIT_TOLD.format(number), file=sys.stderr, flush=True)

    try:
        run_vm(ExitService(CertFile(path)), at_exit=tell_exit)
    except OSError as error:
        print(f"snpcerts: the built-in VMM: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
