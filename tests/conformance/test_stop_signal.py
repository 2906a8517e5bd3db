# SPDX-License-Identifier: Apache-2.0
"""The stop signal goes to the process that handles it, even if another one runs the vCPUs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from snpcerts.conformance.stop_signal import may_handle, receiver_of

STOP = signal.SIGTERM
CATCHES = "signal.signal(15, lambda *_: None)"
BLOCKS = "signal.pthread_sigmask(signal.SIG_BLOCK, {15})"
AWAITS = f"{BLOCKS}; say(); signal.sigwait({{15}})"
IGNORES = "signal.signal(15, signal.SIG_IGN)"
DEFAULT = "signal.signal(15, signal.SIG_DFL)"
PROGRAM = """
import os, signal, sys
say = lambda: os.write(1, b"%d\\n" % os.getpid())
first, second = sys.argv[1:]
if not first.endswith("sigwait({15})"):
    exec(first)
mine = first if os.fork() else second
exec(mine)
say()
while True:
    signal.pause()
"""


@contextlib.contextmanager
def started(first: str, second: str) -> Iterator[tuple[int, int]]:
    """Yield the IDs of two processes that have executed ``first`` and ``second``; the first started
    the second, which has inherited the first one's handler.
    """
    argv = (sys.executable, "-S", "-c", PROGRAM, first, second)
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        try:
            found = {int(program.stdout.readline()) for _ in range(2)}
            (child,) = found - {program.pid}
            yield program.pid, child
        finally:
            program.kill()
            with contextlib.suppress(ProcessLookupError, UnboundLocalError):
                os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("vcpus", [BLOCKS, IGNORES], ids=["blocks", "ignores"])
def test_a_process_for_control_may_handle_the_signal(vcpus: str) -> None:
    with started(CATCHES, vcpus) as (control, runner):
        assert receiver_of(STOP, runner, [control, runner]) == control
        assert may_handle(STOP, control)
        assert receiver_of(STOP, runner, [runner]) == runner


@pytest.mark.parametrize("control", [CATCHES, DEFAULT], ids=["catches", "default"])
def test_a_process_that_the_signal_ends_gets_the_signal_itself(control: str) -> None:
    """This also holds behind a wrapper that passes signals on, as timeout(1) does."""
    with started(control, DEFAULT) as (wrapper, runner):
        assert receiver_of(STOP, runner, [wrapper, runner]) == runner
        assert not may_handle(STOP, runner)


def test_a_process_that_blocks_the_signal_may_look_for_it_later() -> None:
    with started(DEFAULT, BLOCKS) as (wrapper, runner):
        assert receiver_of(STOP, runner, [wrapper, runner]) == runner
        assert may_handle(STOP, runner)


def test_a_process_that_waits_for_the_signal_handles_it() -> None:
    with started(DEFAULT, AWAITS) as (wrapper, runner):
        while not may_handle(STOP, runner):
            os.sched_yield()
        assert receiver_of(STOP, runner, [wrapper, runner]) == runner
    with started(AWAITS, BLOCKS) as (control, runner):
        while receiver_of(STOP, runner, [control, runner]) != control:
            os.sched_yield()
