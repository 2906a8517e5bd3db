# SPDX-License-Identifier: Apache-2.0
"""Reads which mitigations the firmware can verify, and which it has verified.

Source: Linux 7.3, ``drivers/crypto/ccp/sev-dev.c``: SNP_VERIFY_MITIGATION behind
``/sys/firmware/sev/vulnerabilities``. That directory has two files with one hexadecimal vector
each. AMD's security bulletins explain the bits. With older kernels or firmware the files do not
exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FOLDER: Final = "/sys/firmware/sev/vulnerabilities"
_LIMIT: Final = 64  # bytes of one file
_BITS: Final = 64


@dataclass(frozen=True, slots=True)
class Mitigations:
    """Two mitigation vectors of 64 bits: each bit is one mitigation."""

    supported: int
    verified: int

    @property
    def unverified(self) -> int:
        """The mitigations that the firmware supports but has not verified."""
        return self.supported & ~self.verified

    def __str__(self) -> str:
        text = f"supported {self.supported:#x}, verified {self.verified:#x}"
        return f"{text}, unverified {self.unverified:#x}" if self.unverified else text

    def to_json(self) -> dict[str, object]:
        """Return the vectors as JSON values, in the kernel's notation."""
        return {"supported": f"{self.supported:#x}", "verified": f"{self.verified:#x}"}


def mitigations(folder: str = FOLDER) -> Mitigations | None:
    """Read this host's mitigation vectors; None if either is missing or unreadable."""
    found = [_vector(f"{folder}/{name}_mitigations") for name in ("supported", "verified")]
    supported, verified = found
    return None if supported is None or verified is None else Mitigations(supported, verified)


def _vector(path: str) -> int | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            value = int(file.read(_LIMIT).strip(), 16)
    except (OSError, ValueError):
        return None
    return value if 0 <= value < 1 << _BITS else None
