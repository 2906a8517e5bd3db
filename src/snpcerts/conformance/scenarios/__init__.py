# SPDX-License-Identifier: Apache-2.0
"""The scenarios, by topic. Each scenario runs its own VMM.

``starting`` ends with the VMM's first answer. ``answers`` is about the table and the errors,
``buffers`` about the buffer's place in guest memory, ``changes`` about changes to the file.
``locking`` is about the lock, ``vcpus`` about two vCPUs at once, ``vcpus_waiting`` about two that
wait for the lock, ``sharing`` about pages that a guest shares for a request, ``ending`` about a VMM
that is stopped during a request. Imports ``conformance``, ``emulator`` and ``abi``.
"""
