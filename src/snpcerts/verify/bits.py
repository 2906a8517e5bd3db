# SPDX-License-Identifier: Apache-2.0
"""The bits of a report's POLICY and PLATFORM_INFO fields: their names, and what each value means.

Source: SNP ABI (56860) tables "Guest Policy" and "PLATFORM_INFO". The names are AMD's, in lower
case, and are the same in policies and policy files.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bit:
    """One bit: its index in the word, and what the values one and zero mean."""

    index: int
    one: str
    zero: str

    def of(self, word: int) -> bool:
        """Return whether the bit is one in ``word``."""
        return bool(word >> self.index & 1)

    def words(self, word: int) -> str:
        """Return in words what the bit's value in ``word`` means."""
        return self.one if self.of(word) else self.zero


GUEST_POLICY_BITS: dict[str, Bit] = {
    "smt": Bit(16, "simultaneous multithreading is allowed", "SMT must be off"),
    "migrate_ma": Bit(
        18, "a migration agent may be associated", "no migration agent may be associated"
    ),
    "debug": Bit(19, "the host may read and write guest memory", "debugging is not allowed"),
    "single_socket": Bit(
        20, "the guest may run on one socket only", "the guest may run on several sockets"
    ),
    "cxl_allow": Bit(
        21, "CXL devices and memory may be populated", "no CXL devices or memory may be populated"
    ),
    "mem_aes_256_xts": Bit(
        22, "memory must be encrypted with AES-256-XTS", "any memory encryption mode is allowed"
    ),
    "rapl_dis": Bit(23, "power limit readings (RAPL) must be off", "RAPL may be on"),
    "ciphertext_hiding_dram": Bit(
        24, "ciphertext hiding must be on for DRAM", "ciphertext hiding may be off"
    ),
    "page_swap_disable": Bit(
        25,
        "the host must not move or swap guest pages",
        "the host may move and swap guest pages",
    ),
}

# Genuine reports have bit 6 set. It has no public name.
PLATFORM_INFO_BITS: dict[str, Bit] = {
    "smt_en": Bit(0, "SMT is on", "SMT is off"),
    "tsme_en": Bit(1, "all memory is encrypted (TSME)", "TSME is off"),
    "ecc_en": Bit(2, "memory has error correction", "memory has no error correction"),
    "rapl_dis": Bit(3, "power limit readings (RAPL) are off", "RAPL is on"),
    "ciphertext_hiding_dram_en": Bit(
        4, "ciphertext hiding is on for DRAM", "ciphertext hiding is off"
    ),
    "alias_check_complete": Bit(
        5,
        "memory has been checked for aliases since reset and has none",
        "memory has not been found free of aliases since reset (BadRAM)",
    ),
    "tio_en": Bit(7, "SEV-TIO is on", "SEV-TIO is off"),
}
