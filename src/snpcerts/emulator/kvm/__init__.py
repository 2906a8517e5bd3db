# SPDX-License-Identifier: Apache-2.0
"""KVM's SNP path: ``/dev/kvm``, VMs, vCPUs, and VMGEXITs.

``platform`` is the host's processor, firmware and VMs; ``kvm_device``, ``vm`` and ``vcpu`` the
three kinds of descriptor; ``sev_commands`` the launch commands. ``ghcb_exit`` serves the exits of a
guest: ``ghcb_page`` reads and writes its GHCB, ``page_state`` serves page state changes,
``guest_instruction`` the instructions that an exit stands for; ``exits`` is how each looks in
``kvm_run``. ``capability`` has the answers of KVM_CHECK_EXTENSION, and ``release`` the kernels that
can be emulated. ``processor_state`` and ``board`` keep the state that a VMM sets although nothing
here uses it; ``irqfd`` signals the eventfds of interrupts; ``private_ranges`` is which pages are
private. Imports ``guest``, ``psp``, ``syscall`` and ``abi``.
"""
