# SPDX-License-Identifier: Apache-2.0
"""A software SEV-SNP platform: firmware, KVM's request path and the guest's driver.

Everything here is below the system call. The product imports none of it and can
tell it from real hardware only by its root key: the emulated ARK is generated,
its subject says EMULATED, and it is trusted only if named as an anchor.

Rooms, from the floor up. Each imports only rooms before it in its line::

    syscall < psp < amd           the firmware, and AMD's certificates for its keys
    syscall < guest < kvm         guests, and the KVM that runs them (kvm also uses psp)
    syscall < frontdoor           system calls of unmodified programs
    machine                       all of it as machines that last; uses every room
"""
