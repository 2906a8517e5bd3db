# SPDX-License-Identifier: Apache-2.0
"""What the firmware keeps of one guest: launch, identity, message keys and counters.

Only :class:`snpcerts.emulator.firmware.Firmware` changes a context, under its
own lock; others may look.
"""

from __future__ import annotations

import enum
import hashlib
import os
from dataclasses import dataclass, field
from typing import Final

from snpcerts.abi.guest_message import VMPCK_COUNT, VMPCK_SIZE, SecretsPage
from snpcerts.abi.kvm import PageType
from snpcerts.abi.tcb import TcbVersion

PAGE_SIZE: Final = 4096
DIGEST_SIZE: Final = 48
PAGE_INFO_SIZE: Final = 0x70
SECRETS_VERSION: Final = 3


class GuestState(enum.Enum):
    """Where a guest is in its life."""

    LAUNCHING = "launching"
    RUNNING = "running"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class IdBlock:
    """What an ID block says of a guest, its signatures taken as checked.

    The two key digests are SHA-384 over the keys in AMD's format; zero where no
    such key was given. A ``measurement`` or ``policy`` of None is not compared.
    """

    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    guest_svn: int = 0
    measurement: bytes | None = None
    policy: int | None = None
    id_key_digest: bytes = bytes(DIGEST_SIZE)
    author_key_digest: bytes = bytes(DIGEST_SIZE)
    author_key_en: bool = False


@dataclass(slots=True, eq=False)
class GuestContext:
    """One guest.

    ``counters`` holds per VMPCK the number of the last message exchanged: an
    even number, 0 at launch.
    """

    policy: int
    launch_tcb: TcbVersion
    launch_mit_vector: int = 0
    gosvw: bytes = bytes(16)
    state: GuestState = GuestState.LAUNCHING
    measurement: bytes = bytes(DIGEST_SIZE)
    host_data: bytes = bytes(32)
    id_block: IdBlock = field(default_factory=IdBlock)
    vcek_disabled: bool = False
    report_id: bytes = field(default_factory=lambda: os.urandom(32))
    vmrk: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    vmpcks: tuple[bytes, ...] = field(
        default_factory=lambda: tuple(os.urandom(VMPCK_SIZE) for _ in range(VMPCK_COUNT)),
        repr=False,
    )
    counters: list[int] = field(default_factory=lambda: [0] * VMPCK_COUNT)

    def measure(self, gpa: int, page_type: PageType, page: bytes) -> None:
        """Extend the measurement by one page.

        A running SHA-384 over (digest so far, digest of the contents, page type,
        GPA), in the manner of SNP's PAGE_INFO. Only NORMAL pages contribute
        their contents. The layout follows AMD's, but no claim is made that a
        real launch of the same pages measures the same; VMSAs are not measured.
        """
        contents = bytes(DIGEST_SIZE)
        if page_type is PageType.NORMAL:
            contents = hashlib.sha384(page).digest()
        info = b"".join(
            (
                self.measurement,
                contents,
                PAGE_INFO_SIZE.to_bytes(2, "little"),
                bytes((page_type, 0, 0, 0, 0, 0)),  # no IMI, no rights for VMPL 1 to 3
                gpa.to_bytes(8, "little"),
            )
        )
        self.measurement = hashlib.sha384(info).digest()

    def secrets_page(self, fms: int) -> bytes:
        """The page that gives the guest its VMPCKs. ``fms`` is CPUID 1's signature."""
        vmpck0, vmpck1, vmpck2, vmpck3 = self.vmpcks
        return SecretsPage(
            version=SECRETS_VERSION,
            fms=fms,
            gosvw=self.gosvw,
            vmpck0=vmpck0,
            vmpck1=vmpck1,
            vmpck2=vmpck2,
            vmpck3=vmpck3,
        ).pack()
