# SPDX-License-Identifier: Apache-2.0
"""The built-in VMM as a process: one SNP VM whose certificates come from a file.

It makes the same system calls as any VMM, through the same library that VMMs in
Python use. Started as ``python -m snpcerts.emulator.vmm_program DIRECTORY FILE``,
it goes behind the platform's front door and ends with the process that started
it.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import sys
from pathlib import Path

from snpcerts.abi.kvm import VCPU_MMAP_SIZE, ExitReason
from snpcerts.certfile.certfile import CertFile
from snpcerts.emulator.enter import become_host_program
from snpcerts.emulator.guest_script import GuestScript
from snpcerts.emulator.home import PlatformHome
from snpcerts.emulator.reference_vmm import build_vm
from snpcerts.errors import SnpCertsError
from snpcerts.vmm.exit_service import ExitService
from snpcerts.vmm.guest_memory import MappedMemory

_PR_SET_PDEATHSIG = 1
_SERVE = "--serve"


class SystemCalls:
    """The real thing, as far as a process can tell."""

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        """open(2)."""
        return os.open(path, flags | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: int | bytearray = 0) -> int:
        """ioctl(2); a bytearray is written back to."""
        return fcntl.ioctl(fd, request, argument)

    def mmap_run(self, vcpu_fd: int) -> mmap.mmap:
        """Map a vCPU's kvm_run."""
        return mmap.mmap(vcpu_fd, VCPU_MMAP_SIZE)

    def close(self, fd: int) -> None:
        """close(2)."""
        os.close(fd)


def serve(path: str) -> None:
    """Run one VM until it shuts down, serving the certificate file at ``path``."""
    vm = build_vm(SystemCalls())
    service = ExitService(CertFile(path))
    memory = MappedMemory([(vm.base, memoryview(vm.memory))])
    run = vm.runs[0]
    while True:
        try:
            vm.run()
        except InterruptedError:
            continue
        if run.exit_reason != ExitReason.SNP_REQ_CERTS:
            return
        service.serve(run, memory, vm.run)


def main(arguments: list[str]) -> int:
    """Go behind the door, come back as the VMM."""
    if arguments[0] == _SERVE:
        serve(arguments[1])
        return 0
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    directory, path = arguments
    words = [sys.executable, "-P", "-m", __spec__.name, _SERVE, path]
    try:
        become_host_program(PlatformHome(Path(directory)), words, GuestScript(serve=True))
    except SnpCertsError as error:
        print(f"snpcerts: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
