# SPDX-License-Identifier: Apache-2.0
"""KVM's SNP path: ``/dev/kvm``, VMs, vCPUs, and VMGEXITs.

``host`` is the host's processor, firmware and VMs; ``device``, ``vm`` and
``vcpu`` the three kinds of descriptor; ``sev`` the launch commands; ``ghcb`` the
exits of a guest; ``exits`` how each looks in ``kvm_run``; ``capability`` what
KVM_CHECK_EXTENSION says. ``processor_state`` and ``board`` keep what a VMM sets
and nothing here uses; ``private_ranges`` which pages are private. Imports
``guest``, ``psp`` and ``syscall``.
"""
