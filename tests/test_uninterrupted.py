# SPDX-License-Identifier: Apache-2.0
"""Blocks that a signal does not interrupt, whichever thread gets the signal."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

# The second thread receives the signals that the main thread blocks.
_START = """
    import os, signal, threading
    from snpcerts.cli.signals import EndedBySignalError, ends_cleanly
    from snpcerts.uninterrupted import uninterrupted

    threading.Thread(target=threading.Event().wait, daemon=True).start()

    def interrupt(number=signal.SIGTERM):
        woken, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        os.kill(os.getpid(), number)
        os.read(woken, 1)  # a thread has it
        signal.set_wakeup_fd(-1)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    text = textwrap.dedent(_START) + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("options", ["", "mask=False"])
def test_a_block_comes_to_its_end_before_the_signal_ends_the_command(options: str) -> None:
    made = run(f"""
        try:
            with ends_cleanly():
                with uninterrupted({options}):
                    with uninterrupted():
                        interrupt()
                        print("inner")
                    print("outer")
                print("not reached")
        except EndedBySignalError as ended:
            print(ended.exit_code)
    """)
    assert made.stdout.splitlines() == ["inner", "outer", "143"], made.stderr


def test_a_signal_after_the_block_is_not_delayed_and_none_comes_twice() -> None:
    made = run("""
        for _ in range(2):
            try:
                with ends_cleanly():
                    with uninterrupted():
                        pass
                    interrupt(signal.SIGHUP)
                    for _ in range(1000):
                        pass
                    print("not reached")
            except EndedBySignalError as ended:
                print(ended.exit_code)
        with ends_cleanly(), uninterrupted():
            pass
    """)
    assert made.stdout.splitlines() == ["129", "129"], made.stderr


def test_a_process_that_is_started_in_the_block_inherits_the_mask_only_with_a_mask() -> None:
    made = run("""
        import subprocess, sys
        show = "from signal import *; print(SIGTERM in pthread_sigmask(SIG_BLOCK, ()))"
        for mask in (True, False):
            with uninterrupted(mask=mask):
                subprocess.run([sys.executable, "-c", show])
    """)
    assert made.stdout.splitlines() == ["True", "False"], made.stderr
