# SPDX-License-Identifier: Apache-2.0
"""Measures one served certificate request: the exit service against its system calls in C.

The table has 8 KiB. The figures are processor time, which other work on the machine hardly
changes. In place of KVM_RUN, the C program calls getppid(2). The exit service is measured twice:
with a function that calls getppid(2), and with a descriptor of /dev/null, which refuses KVM_RUN.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench.compare import Skip, compare
from snpcerts.abi.kvm import RUN_SIZE, RunView
from snpcerts.certfile.file import CertFile
from snpcerts.vmm.exit_service import ExitService
from snpcerts.vmm.guest_memory import MappedMemory

COUNT = 5000


def main() -> None:
    """Print microseconds per request, and the ratio."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Skip("no C compiler")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "exit_service"
        source = Path(__file__).with_name("exit_service.c")
        subprocess.run([compiler, "-O2", "-o", program, source], check=True)
        file = Path(folder) / "certs.bin"
        file.write_bytes(b"\x01" * 8192)

        def in_c() -> float:
            argv = [str(program), str(file), str(COUNT)]
            made = subprocess.run(argv, capture_output=True, text=True, check=True)
            return float(made.stdout) / 1e9

        def in_python(*, with_descriptor: bool) -> float:
            service = ExitService(CertFile(str(file)))
            run = RunView(bytearray(RUN_SIZE))
            run.snp_req_certs = (0, 4, 0)
            memory = MappedMemory([(0, bytearray(1 << 16))])

            def kvm_run() -> None:
                os.getppid()
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

            vcpu = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            enter = vcpu if with_descriptor else kvm_run
            logging.disable()  # /dev/null refuses each KVM_RUN
            start = time.thread_time()
            for _ in range(COUNT):
                served = service.serve(run, memory, enter)
            spent = time.thread_time() - start
            logging.disable(logging.NOTSET)
            os.close(vcpu)
            assert served.size == 8192
            return spent / COUNT

        compare(
            "exit service, one request, processor time",
            {
                "system calls in C": in_c,
                "ExitService, with a descriptor": lambda: in_python(with_descriptor=True),
                "ExitService, with a function": lambda: in_python(with_descriptor=False),
            },
            unit="us",
            scale=1e6,
        )
