# SPDX-License-Identifier: Apache-2.0
"""Which Linux the emulated host runs, and where that makes a difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from snpcerts.abi.kvm import ExitReason

SERIES: Final = ("7.2", "7.3")


@dataclass(frozen=True, slots=True)
class KernelRelease:
    """A release series, the newest unless said.

    ``req_certs_exit`` is what it calls KVM_EXIT_SNP_REQ_CERTS: 42 in trees that
    carry the series as posted.
    """

    series: str = SERIES[-1]
    req_certs_exit: int = ExitReason.SNP_REQ_CERTS

    @property
    def refuses_launch_update_without_source(self) -> bool:
        """Whether SNP_LAUNCH_UPDATE with uaddr 0 is EINVAL at once; 7.2 fails at the first page."""
        return self.series != "7.2"


NEWEST: Final = KernelRelease()
