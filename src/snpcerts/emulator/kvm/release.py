# SPDX-License-Identifier: Apache-2.0
"""The Linux release that the emulated host runs, and how releases differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from snpcerts.abi.kvm import ExitReason

SERIES: Final = ("7.2", "7.3")


@dataclass(frozen=True, slots=True)
class KernelRelease:
    """A release series; the newest is the default.

    ``req_certs_exit`` is its number for KVM_EXIT_SNP_REQ_CERTS: 42 in trees with the series as
    posted.
    """

    series: str = SERIES[-1]
    req_certs_exit: int = ExitReason.SNP_REQ_CERTS

    @property
    def refuses_launch_update_without_source(self) -> bool:
        """Whether SNP_LAUNCH_UPDATE with uaddr 0 fails with EINVAL at once; Linux 7.2 fails at the
        first page.
        """
        return self.series != "7.2"


NEWEST: Final = KernelRelease()
