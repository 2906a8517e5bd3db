# SPDX-License-Identifier: Apache-2.0
"""Detaches this process from its parent, which may go on to execute the user's program.

A program that waits for all its children (``os.wait()``, strace, an init) must not get a child that
it did not start.
"""

from __future__ import annotations

import os
import select
import threading


def leave_parent() -> None:
    """Fork. The parent exits with code 0, and the orphaned child continues.

    This process must have only one thread. Its process ID changes.
    """
    if os.fork():
        os._exit(0)


def end_with(process: int) -> None:
    """End this process when another process ends. Takes ownership of ``process``, a pidfd of that
    process.
    """

    def wait() -> None:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.poll()
        os._exit(0)

    threading.Thread(target=wait, name="end of the program", daemon=True).start()
