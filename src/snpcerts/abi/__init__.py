# SPDX-License-Identifier: Apache-2.0
"""Ground floor: layouts, numbers and codecs.

Nothing here does I/O, decides policy, or needs more than the standard library.
Every number names its source. The sources most often named:

=========  ==================================================================
GHCB       AMD publication 56421, SEV-ES Guest-Hypervisor Communication Block
SNP ABI    AMD publication 56860, SEV Secure Nested Paging Firmware ABI
KDS        AMD publication 57230, VCEK Certificate and KDS Interface
kvm.h      Linux ``include/uapi/linux/kvm.h``, ``arch/x86/include/uapi/asm/kvm.h``
psp-sev.h  Linux ``include/uapi/linux/psp-sev.h``
=========  ==================================================================
"""
