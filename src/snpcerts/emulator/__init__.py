# SPDX-License-Identifier: Apache-2.0
"""A software SEV-SNP platform: firmware, KVM's request path and the guest's driver.

Everything here is below the system call. The product imports none of it and can
tell it from real hardware only by its root key: the emulated ARK is generated,
its subject says EMULATED, and it is trusted only if named as an anchor.

The rooms, from the ground up. Each imports only rooms that stand before it here:

- ``syscall``: calls, their callers and the callers' memory
- ``psp``: the firmware
- ``amd``: AMD's certificates for the firmware's keys
- ``guest``: guests and their drivers
- ``kvm``: the KVM that runs them
- ``frontdoor``: system calls of unmodified programs
- ``machine``: all of it, as machines that last
"""
