# SPDX-License-Identifier: Apache-2.0
"""The firmware's state for one guest: launch, identity, message keys and counters.

Only :class:`snpcerts.emulator.psp.firmware.Firmware` changes a context, under its own lock. Others
may read it.
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
from snpcerts.emulator.psp.id_block import IdBlock

PAGE_SIZE: Final = 4096
DIGEST_SIZE: Final = 48
PAGE_INFO_SIZE: Final = 0x70
SECRETS_VERSION: Final = 3
TSC_FACTOR: Final = 200  # sev_rmp.h, TSC_FACTOR_GENOA
PAGE_TYPE_VMSA: Final = 2  # only KVM itself launches VMSA pages
PAGE_TYPES: Final = frozenset({*PageType, PAGE_TYPE_VMSA})
PAGES_ALONE: Final = frozenset({PAGE_TYPE_VMSA, PageType.SECRETS, PageType.CPUID})  # 4 KiB only
_TSC_SCALE: Final = 0x2F0  # GUEST_TSC_SCALE and GUEST_TSC_OFFSET of a VMSA, 8 bytes each


def _tweak_bitmap() -> bytes:
    """Return a bitmap of the VMSA quadwords that the firmware XORs with a random tweak.

    They hold RIP, RSP, RAX, the other general registers, x87, XMM, YMM, and the AVX-512 areas
    (AMD64 APM volume 2, table B-4; AMD-ASPFW ``sev_es.c``).
    """
    bitmap = bytearray(64)
    for start, end in (
        (0x178, 0x180),
        (0x1D8, 0x1E0),
        (0x1F8, 0x200),
        (0x308, 0x320),
        (0x328, 0x380),
        (0x420, 0x670),
        (0x980, 0xFC0),
    ):
        for quadword in range(start // 8, end // 8):
            bitmap[quadword // 8] |= 1 << quadword % 8
    return bytes(bitmap)


VMSA_TWEAK_BITMAP: Final = _tweak_bitmap()


class GuestState(enum.Enum):
    """The stages of a guest's life."""

    LAUNCHING = "launching"
    RUNNING = "running"
    GONE = "gone"


@dataclass(slots=True, eq=False)
class GuestContext:
    """The firmware's state for one guest.

    ``counters`` holds, for each VMPCK, the number of the last message exchanged. Each counter is
    always even, and 0 at launch.
    """

    policy: int
    launch_tcb: TcbVersion
    launch_mit_vector: int = 0
    gosvw: bytes = bytes(16)
    state: GuestState = GuestState.LAUNCHING
    measurement: bytes = bytes(DIGEST_SIZE)
    host_data: bytes = bytes(32)
    id_block: IdBlock = field(default_factory=IdBlock)
    id_block_en: bool = False
    author_key_en: bool = False
    desired_tsc_khz: int = 0
    vcek_disabled: bool = False
    report_id: bytes = field(default_factory=lambda: os.urandom(32))
    vmrk: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    vmpcks: tuple[bytes, ...] = field(
        default_factory=lambda: tuple(os.urandom(VMPCK_SIZE) for _ in range(VMPCK_COUNT)),
        repr=False,
    )
    counters: list[int] = field(default_factory=lambda: [0] * VMPCK_COUNT)

    def measure(self, gpa: int, page_type: int, page: bytes) -> None:
        """Extend the launch measurement by one page, as PAGE_INFO in the SNP ABI defines.

        The measurement is a running SHA-384 over the digest so far, the digest of the contents, the
        page type and the GPA. Only NORMAL pages and VMSAs contribute their contents. For VMSAs, the
        fields that the firmware itself sets are left out.
        """
        contents = bytes(DIGEST_SIZE)
        if page_type == PAGE_TYPE_VMSA:
            page = page[:_TSC_SCALE] + bytes(16) + page[_TSC_SCALE + 16 :]
        if page_type in (PageType.NORMAL, PAGE_TYPE_VMSA):
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
        """Return the secrets page, which gives the guest its VMPCKs. ``fms`` is what CPUID function
        1 returns in EAX.
        """
        vmpck0, vmpck1, vmpck2, vmpck3 = self.vmpcks
        return SecretsPage(
            version=SECRETS_VERSION,
            fms=fms,
            tsc_factor=TSC_FACTOR,
            vmsa_tweak_bitmap=VMSA_TWEAK_BITMAP,
            gosvw=self.gosvw,
            vmpck0=vmpck0,
            vmpck1=vmpck1,
            vmpck2=vmpck2,
            vmpck3=vmpck3,
        ).pack()
