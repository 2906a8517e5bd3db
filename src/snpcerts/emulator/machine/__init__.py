# SPDX-License-Identifier: Apache-2.0
"""Emulated machines: in this process, or in a server that many commands share.

``home`` is a machine's directory, ``server`` the process that runs it, ``enter``
how a command becomes a program on it; ``detached`` starts a server that outlives
its command. ``in_process`` is a machine for callers here, without a front door.
``reference_vmm`` launches a VM, ``vmm_program`` is that as a program.
``key_server`` is AMD's key server for one machine; ``virtual_files`` what tools
read under ``/sys`` and ``/proc``; ``firmware_order`` what an operator does to the
firmware that no ioctl does. Imports every other room.
"""
