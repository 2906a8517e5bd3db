# SPDX-License-Identifier: Apache-2.0
"""The Linux release that the emulated host runs, and how releases differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from snpcerts.abi.kvm import ExitReason

SERIES: Final = ("7.2", "7.3")


@dataclass(frozen=True, slots=True)
class KernelRelease:
    """A series of Linux releases, by default the newest.

    ``req_certs_exit`` is the number of KVM_EXIT_SNP_REQ_CERTS in that kernel: 42 in kernels with
    the patches as first posted, 43 otherwise.
    """

    series: str = SERIES[-1]
    req_certs_exit: int = ExitReason.SNP_REQ_CERTS

    @property
    def refuses_launch_update_without_source(self) -> bool:
        """Whether SNP_LAUNCH_UPDATE with uaddr 0 fails with EINVAL before any page is processed.

        On Linux 7.2 the command fails only when it reaches the first page.
        """
        return self.series != "7.2"

    @property
    def binds_guest_memfd_first(self) -> bool:
        """Whether a slot's range of a guest_memfd is bound before the slot's end is checked.

        If the range and the end are both wrong, Linux 7.2 answers EEXIST, and later releases
        EINVAL.
        """
        return self.series == "7.2"


NEWEST: Final = KernelRelease()
