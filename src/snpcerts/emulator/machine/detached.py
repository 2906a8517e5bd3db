# SPDX-License-Identifier: Apache-2.0
"""Leaving the process that started this one, which may become somebody's program.

A program that waits for all its children (``os.wait()``, strace, an init) must
not find one that it did not start.
"""

from __future__ import annotations

import os
import select
import threading


def leave_parent() -> None:
    """Go on as a process without that parent; the old one ends with exit code 0.

    Only for a process of one thread. The new process id is another.
    """
    if os.fork():
        os._exit(0)


def end_with(process: int) -> None:
    """End this process when another does; ``process`` is a pidfd of it, which is taken."""

    def wait() -> None:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.poll()
        os._exit(0)

    threading.Thread(target=wait, name="end of the program", daemon=True).start()
