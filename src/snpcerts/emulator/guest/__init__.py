# SPDX-License-Identifier: Apache-2.0
"""The software in a VM, and the interfaces that the VM's programs use: ``/dev/sev-guest`` and
configfs-tsm.

``program`` is a vCPU's program and the events it waits for. ``memory_slots`` is the guest's memory,
by slot. ``linux`` behaves as the Linux driver does; ``page_state_calls`` makes pages private or
shared. ``scripted`` is a Linux guest that requests reports by itself; ``script`` says how many, and
``scripted_guests`` creates such guests for VMMs. Programs request reports through
``sev_guest_device``, or through ``tsm_reports`` in the file system of ``configfs``. Imports
``psp``, ``syscall`` and ``abi``.
"""
