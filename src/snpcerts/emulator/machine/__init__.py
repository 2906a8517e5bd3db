# SPDX-License-Identifier: Apache-2.0
"""Emulated machines: in this process, or in a server that many commands share.

``home`` is a machine's directory; ``server`` is the process that runs it; ``enter`` turns this
process into a program on it; ``detached`` lets a server outlive its command. ``in_process`` is a
machine for callers in this process, without a front door. ``reference_vmm`` launches a VM, and
``vmm_program`` is the program that does so. ``key_server`` is AMD's key server for one machine.
``virtual_files`` has the files that tools read under ``/sys`` and ``/proc``. ``firmware_order``
makes changes to the firmware for which there is no ioctl. Imports ``kvm``, ``guest``, ``amd``,
``psp``, ``frontdoor``, ``syscall``, ``vmm``, ``certfile``, ``kds``, ``endorsement`` and ``abi``.
"""
