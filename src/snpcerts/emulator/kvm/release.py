# SPDX-License-Identifier: Apache-2.0
"""The Linux release that the emulated host runs, and how releases differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from snpcerts.abi.kvm import ExitReason

SERIES: Final = ("7.2", "7.3")


@dataclass(frozen=True, slots=True)
class KernelRelease:
    """A series of releases; the default is the newest.

    ``req_certs_exit`` is its number for KVM_EXIT_SNP_REQ_CERTS. It is 42 in kernels with the series
    as it was posted.
    """

    series: str = SERIES[-1]
    req_certs_exit: int = ExitReason.SNP_REQ_CERTS

    @property
    def refuses_launch_update_without_source(self) -> bool:
        """Whether SNP_LAUNCH_UPDATE with uaddr 0 fails with EINVAL at once.

        Linux 7.2 fails at the first page.
        """
        return self.series != "7.2"

    @property
    def binds_guest_memfd_first(self) -> bool:
        """Whether a slot's range of a guest_memfd is bound before the slot's end is checked.

        If both are wrong, Linux 7.2 answers EEXIST, and later releases EINVAL.
        """
        return self.series == "7.2"


NEWEST: Final = KernelRelease()
