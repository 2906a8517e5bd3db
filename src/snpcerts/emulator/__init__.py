# SPDX-License-Identifier: Apache-2.0
"""A software SEV-SNP platform: firmware, KVM's request path, the guest's driver.

Everything here is below the system call. The product imports nothing of it and
cannot tell it from the real thing, except by its root key: the emulated ARK is
generated, its subject says EMULATED, and nothing trusts it unless told to.

Rooms, from the floor up. Each imports only rooms before it in its line::

    syscall < psp < amd           the firmware, and AMD's certificates for its keys
    syscall < guest < kvm         guests, and the KVM that runs them (kvm also uses psp)
    syscall < frontdoor           system calls of unmodified programs
    machine                       all of it as machines that last; uses every room
"""
