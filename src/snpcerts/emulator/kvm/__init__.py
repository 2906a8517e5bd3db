# SPDX-License-Identifier: Apache-2.0
"""KVM's SNP path: ``/dev/kvm``, VMs, vCPUs, and VMGEXITs.

``platform`` is the host's processor, firmware and VMs. ``kvm_device``, ``vm`` and ``vcpu`` are the
three kinds of descriptor; ``sev_commands`` has the launch commands. ``ghcb_exit`` handles a guest's
exits: ``ghcb_page`` reads and writes its GHCB, ``page_state`` serves page state changes,
``guest_instruction`` performs instructions for the guest, and ``exits`` writes each exit to
``kvm_run``. ``capability`` answers KVM_CHECK_EXTENSION, and ``release`` lists the kernels that can
be emulated. ``processor_state`` and ``board`` keep the state of processors and of the board that a
VMM sets up; ``system_registers`` and ``model_registers`` check registers against the guest's
features, which ``host_cpuid`` finds. ``irqfd`` keeps the eventfds of interrupts;
``private_ranges`` records which pages are private. Imports ``guest``, ``psp``, ``syscall`` and
``abi``.
"""
