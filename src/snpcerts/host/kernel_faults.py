# SPDX-License-Identifier: Apache-2.0
"""Known faults of released kernels that affect certificates, as of November 2026.

Versions are those of mainline kernels. Distributions and stable kernels may have the fix earlier,
so a match is only a hint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

AS_OF: Final = "2026-11-26"

_Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class KernelFault:
    """A fault of kernels from ``since`` up to but not including ``fixed``. ``source`` says where it
    is documented.
    """

    name: str
    since: _Version
    fixed: _Version
    what: str
    source: str

    def concerns(self, version: _Version) -> bool:
        """Whether a kernel of this ``version`` has the fault, judged by the number alone."""
        return self.since <= version < self.fixed

    @property
    def fixed_in(self) -> str:
        """The first version with the fix, as text."""
        return ".".join(map(str, self.fixed)).removesuffix(".0")


FAULTS: Final = (
    KernelFault(
        "vlek-load-lost",
        (6, 15, 0),
        (7, 2, 0),
        (
            "while SNP is not initialised, SNP_VLEK_LOAD and SNP_SET_CONFIG "
            "initialise it, run, and shut it down again. The VLEK is lost at once, "
            "but the command reports success"
        ),
        "linux-crypto, 'Do not initialize SNP for SEV ioctls', v2, 2026-05-04 "
        "(20260504165147.1615643-1-tycho@kernel.org); in stable kernels since May 2026",
    ),
    KernelFault(
        "ghcb-not-registered",
        (6, 11, 0),
        (7, 2, 6),
        (
            "a request through a GHCB that the guest has not registered makes KVM_RUN "
            "fail with EINVAL, and most VMMs then end the VM. The guest should get an "
            "error instead"
        ),
        "KVM's arch/x86/kvm/svm/sev.c, as read in 7.2.6 and 7.3.4, which have the fix; in stable "
        "kernels since May 2026",
    ),
)


def version_of(release: str) -> _Version | None:
    """Return the numbers at the start of a kernel's release, such as ``7.2.6-1-amd64``."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3] or 0))


def known(release: str) -> tuple[KernelFault, ...]:
    """Return the faults that a kernel of this ``release`` has, judged by its version number."""
    version = version_of(release)
    return () if version is None else tuple(each for each in FAULTS if each.concerns(version))
