# SPDX-License-Identifier: Apache-2.0
"""Serves KVM_EXIT_SNP_REQ_CERTS, in VMMs that are written in Python and in unmodified VMMs.

A VMM in Python uses ``exit_service``, which serves the exits; ``enable``, which turns the exit on;
``vcpu_run``, which issues KVM_RUN; and ``guest_memory``, through which the service reaches the
guest's buffer. ``preload`` starts other VMMs with the shim of ``native/``; ``elf`` reads what a
program loads, to check whether it can load the shim. ``c_library`` calls the C library of
``native/`` from Python. Imports ``certfile`` and ``abi``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snpcerts.vmm.enable import enable_req_certs as enable_req_certs
    from snpcerts.vmm.enable import supports_req_certs as supports_req_certs
    from snpcerts.vmm.exit_service import ExitService as ExitService
    from snpcerts.vmm.exit_service import OnError as OnError
    from snpcerts.vmm.exit_service import Outcome as Outcome
    from snpcerts.vmm.exit_service import Served as Served
    from snpcerts.vmm.guest_memory import GuestMemory as GuestMemory
    from snpcerts.vmm.guest_memory import GuestMemoryError as GuestMemoryError
    from snpcerts.vmm.guest_memory import MappedMemory as MappedMemory
    from snpcerts.vmm.guest_memory import Slot as Slot
    from snpcerts.vmm.vcpu_run import run_vcpu as run_vcpu
else:
    from snpcerts.exports import lazy_exports

    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "enable": ("enable_req_certs", "supports_req_certs"),
            "exit_service": ("ExitService", "OnError", "Outcome", "Served"),
            "guest_memory": ("GuestMemory", "GuestMemoryError", "MappedMemory", "Slot"),
            "vcpu_run": ("run_vcpu",),
        },
    )
