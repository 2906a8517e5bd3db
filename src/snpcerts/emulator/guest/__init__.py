# SPDX-License-Identifier: Apache-2.0
"""The software in a VM, and ``/dev/sev-guest``.

``program`` is a vCPU's program and the events it waits for; ``memory_slots`` the guest's memory,
by slots; ``linux`` the Linux driver's behaviour; ``page_state_calls`` how it makes pages private
or shared; ``scripted`` a Linux guest that requests reports by itself, as a ``script`` says;
``sev_guest_device`` lets programs ask. Imports ``syscall`` and ``psp``'s message encryption.
"""
