# SPDX-License-Identifier: Apache-2.0
"""The lowest layer: layouts, numbers and codecs.

Nothing here does I/O, decides policy, or needs more than the standard library.

``cstruct`` declares C structures by their offsets. Linux's interfaces: ``kvm``, ``vcpu_registers``
(special registers and MSRs), ``psp`` (``/dev/sev``), ``sev_guest`` (``/dev/sev-guest``), ``lock``
(open-file-description locks), ``ioctl`` (how request numbers are built). Data between guest,
hypervisor and firmware: ``ghcb``, ``guest_message``, ``cert_table``. Attestation: ``report``,
``tcb``, ``product``; ``processor_names`` has processors' code names. Imports no other package.

Every number names its source. The most frequent sources are:

- GHCB: AMD publication 56421, SEV-ES Guest-Hypervisor Communication Block
- SNP ABI: AMD publication 56860, SEV Secure Nested Paging Firmware ABI
- KDS: AMD publication 57230, VCEK Certificate and KDS Interface
- kvm.h: Linux ``include/uapi/linux/kvm.h``, ``arch/x86/include/uapi/asm/kvm.h``
- psp-sev.h: Linux ``include/uapi/linux/psp-sev.h``
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snpcerts.abi.cert_table import ARK_GUID as ARK_GUID
    from snpcerts.abi.cert_table import ASK_GUID as ASK_GUID
    from snpcerts.abi.cert_table import CRL_GUID as CRL_GUID
    from snpcerts.abi.cert_table import VCEK_GUID as VCEK_GUID
    from snpcerts.abi.cert_table import VLEK_GUID as VLEK_GUID
    from snpcerts.abi.cert_table import CertTable as CertTable
    from snpcerts.abi.cert_table import TableEntry as TableEntry
    from snpcerts.abi.cert_table import TableProblem as TableProblem
    from snpcerts.abi.guest_message import KeySelect as KeySelect
    from snpcerts.abi.kvm import RunView as RunView
    from snpcerts.abi.product import Product as Product
    from snpcerts.abi.report import REPORT_SIZE as REPORT_SIZE
    from snpcerts.abi.report import Malformation as Malformation
    from snpcerts.abi.report import Report as Report
    from snpcerts.abi.report import SigningKey as SigningKey
    from snpcerts.abi.report import malformations as malformations
    from snpcerts.abi.tcb import TcbLayout as TcbLayout
    from snpcerts.abi.tcb import TcbVersion as TcbVersion
else:
    from snpcerts.exports import lazy_exports

    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "cert_table": (
                "CertTable",
                "TableEntry",
                "TableProblem",
                "VCEK_GUID",
                "VLEK_GUID",
                "ASK_GUID",
                "ARK_GUID",
                "CRL_GUID",
            ),
            "guest_message": ("KeySelect",),
            "kvm": ("RunView",),
            "product": ("Product",),
            "report": ("REPORT_SIZE", "Malformation", "Report", "SigningKey", "malformations"),
            "tcb": ("TcbLayout", "TcbVersion"),
        },
    )
