# SPDX-License-Identifier: Apache-2.0
"""KVM compares address spaces, not processes."""

from __future__ import annotations

import os

from snpcerts.emulator.syscall.same_memory import share_memory


def test_only_processes_with_one_address_space_share_memory() -> None:
    """One VMM of tests/conformance runs its vCPUs in processes that share its memory."""
    mine, ready = os.getpid(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready[1])
        os.read(ready[0], 1)
        os._exit(0)
    os.close(ready[0])
    assert share_memory(mine, mine)
    assert not share_memory(mine, child)
    os.close(ready[1])
    os.waitpid(child, 0)
    assert not share_memory(mine, child)
