# SPDX-License-Identifier: Apache-2.0
"""A software SEV-SNP platform: firmware, KVM's request path, the guest's driver.

Everything here stands below the system call. The product imports nothing of it
and cannot tell it from the real thing, except by its root key: the emulated ARK
is generated, its subject says EMULATED, and nothing trusts it unless told to.
"""
