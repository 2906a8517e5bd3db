# SPDX-License-Identifier: Apache-2.0
"""A software SEV-SNP platform: firmware, KVM's request path and the guest's driver.

Everything here is below the system call. The code for real hosts and guests does not import it, and
can distinguish it from real hardware only by the root key: the emulated ARK is generated, its
subject contains EMULATED, and it is trusted only if it is named as an anchor.

Each subpackage imports only those listed above it:

- ``syscall``: calls, their callers and the callers' memory
- ``psp``: the firmware
- ``amd``: AMD's certificates for the firmware's keys
- ``guest``: guests and their drivers
- ``kvm``: the KVM that runs them
- ``frontdoor``: system calls of unmodified programs
- ``machine``: complete machines that persist
"""
