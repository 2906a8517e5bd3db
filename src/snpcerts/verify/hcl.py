# SPDX-License-Identifier: Apache-2.0
"""Decodes the HCL report of an Azure confidential VM, which contains an attestation report.

Such a VM has no ``/dev/sev-guest``. Its paravisor makes *runtime claims*, JSON with the virtual
TPM's keys, and requests a report whose REPORT_DATA is their digest. It puts report and claims into
a TPM NV index (0x01400001). All integers are little-endian:

======  ====  ==================================================
offset  size  field
======  ====  ==================================================
0       4     signature, ``HCLA``
4       4     version, 1 or 2
8       20    sizes and usage; not signed, not read here
32      1184  the attestation report
1216    4     size of the runtime data
1220    4     its version, 1
1224    4     type of the report, 2 for SEV-SNP
1228    4     digest: 1 SHA-256, 2 SHA-384, 3 SHA-512
1232    4     size of the runtime claims
1236    n     the runtime claims; then padding
======  ====  ==================================================

Source: Microsoft, "Azure Confidential VM guest attestation design detail", checked against a
genuine blob (which has version 1, and pads with zero bytes).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

from snpcerts.abi.report import REPORT_SIZE
from snpcerts.errors import FormatError

WHAT: Final = "HCL report"
SIGNATURE: Final = b"HCLA"
REPORT_OFFSET: Final = 32
RUNTIME_OFFSET: Final = REPORT_OFFSET + REPORT_SIZE
CLAIMS_OFFSET: Final = RUNTIME_OFFSET + 20
# Far above the 2600 bytes of the NV index.
MAX_SIZE: Final = 64 << 10

_VERSIONS: Final = (1, 2)
_RUNTIME_VERSION: Final = 1
_TYPE_SNP: Final = 2
_RUNTIME = struct.Struct("<5I")
_DIGESTS: Final = {1: "sha256", 2: "sha384", 3: "sha512"}


@dataclass(frozen=True, slots=True)
class HclReport:
    """The parts of an HCL report: the attestation report, the runtime claims, and the name (as in
    hashlib) of the digest that binds the two.
    """

    report: bytes
    claims: bytes
    digest: str

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Parse an HCL report, which may be padded with zeros after the claims.

        Raises :class:`FormatError`, which names the wrong field or its offset.
        """
        if len(data) > MAX_SIZE:
            raise FormatError(WHAT, f"expected at most {MAX_SIZE} bytes, found {len(data)}")
        if len(data) < CLAIMS_OFFSET:
            raise FormatError(WHAT, f"expected at least {CLAIMS_OFFSET} bytes, found {len(data)}")
        if data[:4] != SIGNATURE:
            raise FormatError(WHAT, f"expected b'HCLA', found {data[:4]!r}", field="signature")
        version = int.from_bytes(data[4:8], "little")
        if version not in _VERSIONS:
            raise FormatError(
                WHAT, f"expected version 1 or 2, found {version}", field="version", offset=4
            )
        _, runtime_version, kind, digest, size = _RUNTIME.unpack_from(data, RUNTIME_OFFSET)
        if runtime_version != _RUNTIME_VERSION:
            raise FormatError(
                WHAT,
                f"expected version 1, found {runtime_version}",
                field="runtime data version",
                offset=1220,
            )
        if kind != _TYPE_SNP:
            raise FormatError(
                WHAT,
                f"expected report type 2 (SEV-SNP), found {kind}",
                field="report type",
                offset=1224,
            )
        if digest not in _DIGESTS:
            raise FormatError(
                WHAT,
                f"expected a digest number from 1 to 3, found {digest}",
                field="hash type",
                offset=1228,
            )
        end = CLAIMS_OFFSET + size
        if end > len(data):
            raise FormatError(
                WHAT,
                f"expected at most the {len(data) - CLAIMS_OFFSET} bytes that follow, found {size}",
                field="claim size",
            )
        if any(data[end:]):
            raise FormatError(
                WHAT, "expected only zero bytes after the runtime claims, found others", offset=end
            )
        return cls(data[REPORT_OFFSET:RUNTIME_OFFSET], data[CLAIMS_OFFSET:end], _DIGESTS[digest])
